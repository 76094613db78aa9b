"""Which parts of this package run compiled here."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from types import ModuleType


@lru_cache
def compiled(name: str) -> ModuleType | None:
    """The module ``petomo.physics.{name}``, compiled by numba or Triton; None where it cannot be."""
    try:
        return import_module(f"petomo.physics.{name}")
    except (ImportError, RuntimeError):  # none of them, or nowhere to keep what it compiles
        return None
