"""The storage that hf-xet talks to: files as pieces of xorbs (packs of compressed chunks), which shards describe.

The formats are those of the public specification of xet. The hashes that xet gives to chunks and xorbs are not
checked; that of every whole file (sha256) is.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lz4.frame
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from .store import XetFile
from .uploads import keep_large
from .web import Grant, HubError, World, answer, bearer, caller, commit_of, part, repository, world

_HEADER = RECORD = 48
_WITH_CHECKS, _WITH_SHA256 = 1 << 31, 1 << 30
_LIFE = 3600  # seconds that a token of xet is good for


async def token(request: Request) -> Response:
    write = request.path_params["access"] == "write"
    found, who = repository(request, write=write), caller(request)
    commit_of(request, found)
    grants = world(request).grants
    made = f"xet-{len(grants)}-{request.path_params['access']}"
    grants[made] = Grant(str(who) if who else None, (found.kind, found.id), write)
    end, cas = int(time.time()) + _LIFE, world(request).cas
    headers = {"X-Xet-Access-Token": made, "X-Xet-Token-Expiration": str(end), "X-Xet-Cas-Url": cas}
    return answer({"accessToken": made, "exp": end, "casUrl": cas}, headers=headers)


def granted(request: Request, write: bool = False) -> Grant:
    """Return what the token of a request allows.

    Raises:
        HubError: it is no token of xet, or not one for this.
    """
    grant = world(request).grants.get(bearer(request) or "")
    if grant is None:
        raise HubError(401, "Not a token of this storage")
    request.scope["log"].who = grant.who
    if write and not grant.write:
        raise HubError(403, "This token may only read")
    return grant


async def put_xorb(request: Request) -> Response:
    granted(request, write=True)
    path, content = _xorb(world(request), part(request, "hash")), await request.body()
    list(chunks(content))  # or fail now
    new = not path.exists()
    path.write_bytes(content)
    return answer({"was_inserted": new})


async def put_shard(request: Request) -> Response:
    grant, content, state = granted(request, write=True), await request.body(), world(request)
    for hash, file in files_of(content):
        partial = state.store.folder / "parts" / hash
        with partial.open("wb") as whole:
            for piece in _pieces(state, file):
                whole.write(piece)
        keep_large(state, grant.repository, file.sha256, partial)
        state.store.xet[hash] = file
    return answer({"result": 1})


async def reconstruction(request: Request) -> Response:
    grant, store = granted(request), world(request).store
    file, of = store.xet.get(part(request, "hash")), store.repositories.get(grant.repository)
    if file is None or of is None or file.sha256 not in of.large:
        raise HubError(404, "No such file")
    size = sum(piece[1] for piece in file.pieces)
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "bytes=0-"))
    first, last = (int(wanted[1]), int(wanted[2] or size)) if wanted else (0, size)
    if size and first >= size:
        raise HubError(416, "The file ends before this range")
    terms: list[dict[str, Any]] = []
    fetch: dict[str, list[dict[str, Any]]] = {}
    place = skipped = 0
    for xorb, length, start, end in file.pieces:
        if place + length > first and place <= last:
            skipped = skipped if terms else first - place
            range = {"start": start, "end": end}
            terms.append({"hash": xorb, "unpacked_length": length, "range": range})
            fetch.setdefault(xorb, []).append({"range": range, **_where(world(request), xorb, start, end)})
        place += length
    return answer({"offset_into_first_range": skipped, "terms": terms, "fetch_info": fetch})


def _where(world: World, xorb: str, start: int, end: int) -> dict[str, Any]:
    """Return the address of some chunks, and the range of bytes there, both ends included."""
    found = list(chunks(_xorb(world, xorb).read_bytes()))
    bytes_range = {"start": found[start].start, "end": found[end - 1].end - 1}
    return {"url": world.signed(world.blobs, f"/xorbs/{xorb}"), "url_range": bytes_range}


async def get_xorb(request: Request) -> Response:
    return FileResponse(_xorb(world(request), part(request, "hash")), media_type="application/octet-stream")


def _xorb(world: World, hash: str) -> Any:
    if not re.fullmatch(r"[0-9a-f]{64}", hash):
        raise HubError(400, "Not a hash")
    return world.store.folder / "xorbs" / hash


def _pieces(world: World, file: XetFile) -> Iterator[bytes]:
    for xorb, length, start, end in file.pieces:
        path = _xorb(world, xorb)
        if not path.exists():  # a client that remembers another Hub under this address may think so
            raise HubError(400, f"The shard speaks of a xorb that was never uploaded: {xorb}")
        content = b"".join(chunk.content for chunk in list(chunks(path.read_bytes()))[start:end])
        if len(content) != length:
            raise HubError(400, "The shard does not fit the xorb")
        yield content


def text(hash: bytes) -> str:
    """Return the usual form of a hash of xet: four numbers of 64 bits in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash))


def files_of(shard: bytes) -> Iterator[tuple[str, XetFile]]:
    """Yield the files that a shard describes."""
    place = _HEADER
    while (hash := shard[place : place + 32]) != b"\xff" * 32:
        if len(hash) < 32:
            raise HubError(400, "The shard ends too early")
        flags, number = struct.unpack_from("<II", shard, place + 32)
        pieces = []
        for _ in range(number):
            place += RECORD
            _, length, start, end = struct.unpack_from("<4I", shard, place + 32)
            pieces.append((text(shard[place : place + 32]), length, start, end))
        place += RECORD * (1 + number * bool(flags & _WITH_CHECKS))
        if not flags & _WITH_SHA256:
            raise HubError(400, "The shard does not say the sha256 of a file")
        yield text(hash), XetFile(text(shard[place : place + 32]), tuple(pieces))
        place += RECORD


@dataclass(frozen=True)
class Chunk:
    """A chunk, and where it lies packed in its xorb."""

    start: int
    end: int
    scheme: int
    packed: bytes

    @property
    def content(self) -> bytes:
        if self.scheme == 0:
            return self.packed
        content = lz4.frame.decompress(self.packed)
        return content if self.scheme == 1 else _ungrouped(content)


def chunks(xorb: bytes) -> Iterator[Chunk]:
    """Yield the chunks of a xorb, which may end in a description that is not needed here."""
    start = 0
    while start < len(xorb) and xorb[start] == 0:
        length, scheme = int.from_bytes(xorb[start + 1 : start + 4], "little"), xorb[start + 4]
        end = start + 8 + length
        if end > len(xorb) or scheme > 2:
            raise HubError(400, "Not a xorb")
        yield Chunk(start, end, scheme, xorb[start + 8 : end])
        start = end


def _ungrouped(content: bytes) -> bytes:
    """Undo the order in which all first bytes of four come first, then all second ones, and so on."""
    whole, start = bytearray(len(content)), 0
    for place in range(4):
        end = start + len(range(place, len(content), 4))
        whole[place::4] = content[start:end]
        start = end
    return bytes(whole)


ROUTES = [
    Route("/api/{kind}/{owner}/{name}/xet-{access}-token/{revision}", token),
]
CAS_ROUTES = [
    Route("/v1/xorbs/default/{hash}", put_xorb, methods=["POST"]),
    Route("/v1/shards", put_shard, methods=["POST"]),
    Route("/v1/reconstructions/{hash}", reconstruction),
]
BLOB_ROUTES = [Route("/xorbs/{hash}", get_xorb)]
