"""The examples in docstrings say what really happens."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import nbparallel

NAMES = [
    module.name
    for module in pkgutil.walk_packages(nbparallel.__path__, "nbparallel.")
    if not module.name.endswith(".__main__")
]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str) -> None:
    """Every ``>>>`` line gives what the line below it says."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0
