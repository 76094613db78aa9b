"""petomo: end-to-end ptychographic electron tomography (You, Romanov and Pelz 2025).

For notebooks and scripts: `load`, `simulate`, `open_run`; see `petomo.api` and `petomo.results`.
Importing petomo is quick; torch and the rest come with the first of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petomo.api import Plan, load, open_run, simulate
    from petomo.core.errors import UserError
    from petomo.results import Run, Volume

__version__ = "0.1.0"
__all__ = ["Plan", "Run", "UserError", "Volume", "__version__", "load", "open_run", "simulate"]

_HOMES = {
    "Plan": "petomo.api",
    "Run": "petomo.results",
    "UserError": "petomo.core.errors",
    "Volume": "petomo.results",
    "load": "petomo.api",
    "open_run": "petomo.api",
    "simulate": "petomo.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'petomo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
