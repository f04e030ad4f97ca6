"""Settings: declared in `declared.py`, read from flags, `OCTAVO_*` variables and a YAML file.

This is the only module of octavo that reads the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from .declared import BUNDLED, Settings, declarations
from .sources import Loaded, merge

__all__ = ["BUNDLED", "Loaded", "Settings", "declarations", "load"]


def load(arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Loaded:
    """Settings from command-line words, the environment, and the file named by `--config`.

    Raises:
        ConfigError: an unknown name (with the nearest known one) or a value out of its limits.
    """
    return merge(arguments, os.environ if environment is None else environment)
