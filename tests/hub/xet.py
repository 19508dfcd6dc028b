"""Serve the storage of hf-xet: xorbs (packs of compressed chunks), and shards that describe files as pieces of xorbs.

The formats follow the public specification of xet. The hashes of chunks and xorbs aren't checked; the sha256 of every
complete file is.
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
_LIFETIME = 3600  # lifetime of a xet token in seconds


async def token(request: Request) -> Response:
    write = request.path_params["access"] == "write"
    found, who = repository(request, write=write), caller(request)
    commit_of(request, found)
    grants = world(request).grants
    made = f"xet-{len(grants)}-{request.path_params['access']}"
    grants[made] = Grant(str(who) if who else None, (found.kind, found.id), write)
    end, cas = int(time.time()) + _LIFETIME, world(request).cas
    headers = {"X-Xet-Access-Token": made, "X-Xet-Token-Expiration": str(end), "X-Xet-Cas-Url": cas}
    return answer({"accessToken": made, "exp": end, "casUrl": cas}, headers=headers)


def granted(request: Request, write: bool = False) -> Grant:
    """Return the permissions of the xet token of a request.

    Raises:
        HubError: the token is invalid or lacks permission.
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
    list(chunks(content))  # raises if it is invalid
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
    """Return the address of chunks, and the range of their bytes, including both ends."""
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
        if not path.exists():  # a client may remember it from another Hub at this address
            raise HubError(400, f"The shard refers to a xorb that was never uploaded: {xorb}")
        content = b"".join(chunk.content for chunk in list(chunks(path.read_bytes()))[start:end])
        if len(content) != length:
            raise HubError(400, "The shard doesn't match the xorb")
        yield content


def text(hash: bytes) -> str:
    """Return the text form of a xet hash: four 64-bit numbers in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash))


def files_of(shard: bytes) -> Iterator[tuple[str, XetFile]]:
    """Yield the files that a shard describes."""
    place = _HEADER
    while (hash := shard[place : place + 32]) != b"\xff" * 32:
        if len(hash) < 32:
            raise HubError(400, "The shard is truncated")
        flags, number = struct.unpack_from("<II", shard, place + 32)
        pieces = []
        for _ in range(number):
            place += RECORD
            _, length, start, end = struct.unpack_from("<4I", shard, place + 32)
            pieces.append((text(shard[place : place + 32]), length, start, end))
        place += RECORD * (1 + number * bool(flags & _WITH_CHECKS))
        if not flags & _WITH_SHA256:
            raise HubError(400, "The shard lacks the sha256 of a file")
        yield text(hash), XetFile(text(shard[place : place + 32]), tuple(pieces))
        place += RECORD


@dataclass(frozen=True)
class Chunk:
    """A packed chunk, and its position in the xorb."""

    start: int
    end: int
    scheme: int
    packed: bytes

    @property
    def content(self) -> bytes:
        if self.scheme == 0:
            return self.packed
        content = lz4.frame.decompress(self.packed)
        return content if self.scheme == 1 else _ungroup(content)


def chunks(xorb: bytes) -> Iterator[Chunk]:
    """Yield the chunks of a xorb; an optional footer is ignored."""
    start = 0
    while start < len(xorb) and xorb[start] == 0:
        length, scheme = int.from_bytes(xorb[start + 1 : start + 4], "little"), xorb[start + 4]
        end = start + 8 + length
        if end > len(xorb) or scheme > 2:
            raise HubError(400, "Not a xorb")
        yield Chunk(start, end, scheme, xorb[start + 8 : end])
        start = end


def _ungroup(content: bytes) -> bytes:
    """Undo the grouping of bytes by their position modulo 4."""
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
