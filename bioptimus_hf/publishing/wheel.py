"""Write a wheel of pure Python and data: the same contents give the same bytes on every machine.

A wheel is a zip file with metadata (https://packaging.python.org/en/latest/specifications/binary-distribution-format).
Building one needs neither a build backend nor a network.
"""

from __future__ import annotations

import base64
import hashlib
import keyword
import shutil
import stat
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bioptimus_hf import __version__
from bioptimus_hf.errors import InputError

LICENSE = "LICENSE"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time in a zip file


@dataclass(frozen=True)
class WheelMetadata:
    """What a wheel says about itself.

    Attributes:
        name: of the distribution, normalised.
        version: normalised.
        license: SPDX expression, normalised.
        summary: one line.
        requirements: distributions that it needs, with bounds.
        python: versions of Python that it runs on.
        entry_points: object to import, by group and name.
        description: long description in Markdown.
        license_text: content of its licence file; None if it has none.
    """

    name: str
    version: str
    license: str
    summary: str
    requirements: Sequence[str]
    python: str
    entry_points: Mapping[str, Mapping[str, str]]
    description: str
    license_text: bytes | None = None

    @property
    def module(self) -> str:
        """Name to import it by."""
        return module_name(self.name)

    @property
    def file_name(self) -> str:
        """Name of the wheel."""
        return f"{self.module}-{self.version}-py3-none-any.whl"

    def files(self) -> dict[str, bytes]:
        """Return the metadata as files, by path in the wheel."""
        folder = f"{self.module}-{self.version}.dist-info"
        headers = [
            "Metadata-Version: 2.4",
            f"Name: {self.name}",
            f"Version: {self.version}",
            f"Summary: {' '.join(self.summary.split())}",
            f"License-Expression: {self.license}",
            *([f"License-File: {LICENSE}"] if self.license_text is not None else []),
            f"Requires-Python: {self.python}",
            *(f"Requires-Dist: {requirement}" for requirement in self.requirements),
            "Description-Content-Type: text/markdown",
        ]
        tags = ["Wheel-Version: 1.0", f"Generator: bioptimus-hf {__version__}", "Root-Is-Purelib: true"]
        points = [
            line
            for group, objects in self.entry_points.items()
            for line in (f"[{group}]", *(f"{name} = {place}" for name, place in objects.items()))
        ]
        files = {
            "METADATA": "\n".join([*headers, "", self.description]).encode(),
            "WHEEL": "\n".join([*tags, "Tag: py3-none-any", ""]).encode(),
            "entry_points.txt": "\n".join([*points, ""]).encode(),
            "top_level.txt": f"{self.module}\n".encode(),
        }
        if self.license_text is not None:
            files[f"licenses/{LICENSE}"] = self.license_text
        return {f"{folder}/{name}": content for name, content in files.items()}


def normal_name(name: str) -> str:
    """Return the normalised name of a distribution whose module can be imported.

    Raises:
        InputError: it is no such name.
    """
    from packaging.utils import InvalidName, canonicalize_name

    try:
        normal = str(canonicalize_name(name, validate=True))
    except InvalidName as error:
        raise InputError(
            f"{name!r} can't name a package: use letters, digits and hyphens, such as disease-finder", argument="name"
        ) from error
    module = module_name(normal)
    if not module.isidentifier() or keyword.iskeyword(module):
        raise InputError(
            f"{name!r} can't name a package, since `import {module}` is not Python: begin with a letter, and use no "
            f"word of the language",
            argument="name",
        )
    return normal


def module_name(name: str) -> str:
    """Return the name to import a distribution by."""
    return name.replace("-", "_")


def normal_version(version: str) -> str:
    """Return a version in its normal form.

    Raises:
        InputError: it isn't a version as pip understands it.
    """
    from packaging.version import InvalidVersion, Version

    try:
        return str(Version(version))
    except InvalidVersion as error:
        raise InputError(f"{version!r} is not a version: give one such as 1.0 or 0.4.1", argument="version") from error


def normal_license(expression: str) -> str:
    """Return an SPDX expression in its normal form.

    Raises:
        InputError: it is empty or unknown.
    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    example = "give an SPDX identifier such as Apache-2.0, or LicenseRef- with a name for terms that have none"
    if not expression.strip():
        raise InputError(f"the licence of the weights is missing: {example}", argument="license")
    try:
        return str(canonicalize_license_expression(expression))
    except InvalidLicenseExpression as error:
        raise InputError(f"{expression!r} is not a licence that SPDX knows: {example}", argument="license") from error


def write_wheel(path: Path, metadata: WheelMetadata, files: Mapping[str, Path | bytes]) -> None:
    """Write a wheel.

    Nothing is compressed: trained weights would be less than a tenth smaller, and the bytes would depend on the version
    of zlib.

    Args:
        path: of the wheel.
        files: contents, or files with them, by path in the wheel.
    """
    own = metadata.files()
    record = next(iter(own)).replace("METADATA", "RECORD")
    rows = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in [*sorted(files.items()), *own.items()]:  # metadata last, as the specification recommends
            digest, size = _add(archive, name, content)
            rows.append(f"{name},sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()},{size}\n")
        _add(archive, record, "".join([*rows, f"{record},,\n"]).encode())


def _add(archive: zipfile.ZipFile, name: str, content: Path | bytes) -> tuple[bytes, int]:
    """Add a file to an archive, and return its SHA-256 and size in bytes."""
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = 3  # Unix, whatever the machine
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    if isinstance(content, bytes):
        archive.writestr(info, content)
        return hashlib.sha256(content).digest(), len(content)
    info.file_size = content.stat().st_size
    with open(content, "rb") as file, archive.open(info, "w") as target:
        shutil.copyfileobj(file, target, 1 << 20)
        file.seek(0)
        return hashlib.file_digest(file, "sha256").digest(), info.file_size
