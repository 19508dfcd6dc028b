"""A Hugging Face Hub on loopback, so that real clients can publish to it and load from it without a network.

    with Hub() as hub:
        token = hub.token("ada", orgs={"lab": "admin"})
        lost = hub.fail("POST */commit/*", Drop(after=True))
        subprocess.run(command, env=hub.environment(token, xet=False), check=True)
        assert lost.happened == 1 and not hub.leaks

What it has: models, datasets and spaces (create, describe, settings, delete, list); branches, tags and commits with the
ids of git; trees and lists in pages; users, organizations, tokens that read or write; private and gated repositories;
uploads by the LFS protocol (in one piece or in parts) and by xet; files from a second origin that refuses tokens; model
cards read and checked; collections. Errors carry the codes that clients look for. Requests can be made to go wrong.

What it has not: discussions (a commit may open a pull request, and no more), moves, squashes, hooks, jobs, likes,
buckets and the rest of the site. It infers nothing from a model's files, and of a card it checks what one of a text
model says. It does not check the hashes of xet's chunks, and deduplicates nothing across repositories.
"""

from .faults import Cut, Delay, Drop, Fault, Request, Status
from .server import Hub

__all__ = ["Cut", "Delay", "Drop", "Fault", "Hub", "Request", "Status"]
