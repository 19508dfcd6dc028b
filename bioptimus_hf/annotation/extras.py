"""Check that optional packages are installed, and name the extra that installs them."""

from __future__ import annotations

from importlib.util import find_spec

from bioptimus_hf.errors import InputError


def require_packages(extra: str, *packages: str) -> None:
    """Raise unless all packages of an extra that are about to be used are installed.

    Args:
        extra: name of the extra, as in `pip install 'bioptimus-hf[extra]'`.
        packages: names of top-level modules.

    Raises:
        InputError: a package is missing.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: "
            f"pip install 'bioptimus-hf[{extra}]'"
        )
