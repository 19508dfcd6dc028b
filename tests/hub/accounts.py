"""Decide who may do what: users, their organizations, and their tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from .store import Repository

Role = Literal["read", "write"]
OrgRole = Literal["read", "write", "admin"]


@dataclass
class User:
    name: str
    orgs: dict[str, OrgRole] = field(default_factory=dict)


@dataclass(frozen=True)
class Caller:
    """A user, with the role of the token they use."""

    user: User
    role: Role

    def __str__(self) -> str:
        return f"{self.user.name} ({self.role})"

    def sees(self, repository: Repository) -> bool:
        return repository.owner == self.user.name or repository.owner in self.user.orgs

    def writes(self, owner: str) -> bool:
        allowed = owner == self.user.name or self.user.orgs.get(owner) in {"write", "admin"}
        return allowed and self.role == "write"

    def manages(self, owner: str) -> bool:
        return self.writes(owner) and self.user.orgs.get(owner, "admin") == "admin"


class Accounts:
    def __init__(self) -> None:
        self._users: dict[str, User] = {}
        self._tokens: dict[str, Caller] = {}

    def token(self, name: str, role: Role, orgs: dict[str, OrgRole]) -> str:
        """Return the token of a user for a role, always the same one, and add the user to organizations."""
        user = self._users.setdefault(name, User(name))
        user.orgs.update(orgs)
        token = "hf_" + hashlib.sha256(f"{name} {role}".encode()).hexdigest()[:34]
        self._tokens[token] = Caller(user, role)
        return token

    def caller(self, token: str) -> Caller | None:
        return self._tokens.get(token)

    def whoami(self, caller: Caller) -> dict[str, object]:
        orgs = [
            {"type": "org", "name": name, "fullname": name, "roleInOrg": role}
            for name, role in sorted(caller.user.orgs.items())
        ]
        token = {"displayName": f"{caller.user.name}'s {caller.role} token", "role": caller.role}
        return {
            "type": "user",
            "id": hashlib.sha256(caller.user.name.encode()).hexdigest()[:24],
            "name": caller.user.name,
            "fullname": caller.user.name,
            "email": f"{caller.user.name}@example.org",
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": token},
        }
