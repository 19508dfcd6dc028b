"""Simulate the Hugging Face Hub on loopback, so that real clients can publish and load without a network.

    with Hub() as hub:
        token = hub.token("ada", orgs={"lab": "admin"})
        lost = hub.fail("POST */commit/*", Drop(after=True))
        subprocess.run(command, env=hub.environment(token, xet=False), check=True)
        assert lost.happened == 1 and not hub.leaks

It has models, data sets and spaces (create, describe, settings, delete, list); branches, tags and commits with the ids
of git; trees and lists in pages; users, organizations, tokens that read or write; private and gated repositories;
uploads by the LFS protocol (in one or several parts) and by xet; downloads from a second origin that rejects tokens;
validation of model cards; collections. Errors carry the codes that clients look for. Tests can make requests fail.

It doesn't have discussions (a commit may open a pull request, but that is all), moves, squashes, webhooks, jobs, likes,
buckets or the rest of the site. It infers nothing from the files of a model, and validates only those fields of a card
that models of text have. It doesn't check the hashes of xet chunks, and doesn't deduplicate across repositories.
"""

from .faults import Cut, Delay, Drop, Fault, Request, Status
from .server import Hub

__all__ = ["Cut", "Delay", "Drop", "Fault", "Hub", "Request", "Status"]
