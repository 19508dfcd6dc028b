"""Test what connecting to Ray does to this process; contexts and annotation test what is done on Ray."""

from __future__ import annotations

import logging

import pytest

from bioptimus_hf import ray_session


def test_a_quiet_logger_keeps_only_its_own_handlers_from_writing() -> None:
    """A handler that the root logger has, too, goes on writing what other loggers say."""
    own, shared = logging.StreamHandler(), logging.StreamHandler()
    own.setLevel(logging.INFO)
    noisy, root = logging.getLogger("noisy"), logging.getLogger()
    root.addHandler(shared)
    noisy.addHandler(own)
    noisy.addHandler(shared)
    try:
        with ray_session._quiet("noisy"):
            assert own.level > logging.CRITICAL
            assert shared.level == logging.NOTSET
        assert own.level == logging.INFO
    finally:
        root.removeHandler(shared)
        noisy.removeHandler(own)
        noisy.removeHandler(shared)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "The actor died\n  File x\nModuleNotFoundError: No module named 'a'\n",
            "ModuleNotFoundError: No module named",
        ),
        ("ImportError: cannot import name 'b'", "ImportError: cannot import name 'b': install the same bioptimus-hf"),
        ("ModuleNotFoundError: a\n\nDuring handling of the above\nValueError: wrong", None),
        ("", None),
    ],
)
def test_errors_of_missing_packages(message: str, expected: str | None) -> None:
    found = ray_session.missing_package(RuntimeError(message))
    assert found is None if expected is None else str(found).startswith(expected)
