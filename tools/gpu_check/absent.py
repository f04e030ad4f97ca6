"""Packages that only constrained answers need, and a bare GPU host may lack."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType


def stand_in(*names: str) -> None:
    """Modules for those of `names` that are not installed: what is imported from them can be made,
    as an engine does when it starts, but not used."""
    for name in names:
        if not is_installed(name.partition(".")[0]):
            sys.modules[name] = _Absent(name)


def is_installed(package: str) -> bool:
    """Whether there is the package itself, and not only what stands in for it."""
    known = sys.modules.get(package)
    if known is not None:
        return not isinstance(known, _Absent)
    return importlib.util.find_spec(package) is not None


class _Absent(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda *_, **__: None, "__getattr__": _refuse})


def _refuse(self: object, name: str) -> None:
    raise ModuleNotFoundError(f"the package that {type(self).__name__} is from is not installed")
