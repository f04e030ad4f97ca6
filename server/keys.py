"""API keys: from the setting and from a file, checked before anything is served."""

from __future__ import annotations

import logging
import os
import re
import stat
from pathlib import Path

from octavo.engine.errors import ConfigError

from .settings import Settings

log = logging.getLogger(__name__)
_KEY = re.compile(r"[\x21-\x7e]+")  # what can stand in a header as it is


def read_keys(settings: Settings) -> tuple[str, ...]:
    """The keys of which a request must carry one; none: no key is asked for.

    A key never shows in a message: a wrong one is told by its place.

    Raises:
        ConfigError: the file cannot be read or names no key, or a key cannot be sent in a header.
    """
    placed = [("--api-key", number, key) for number, key in enumerate(settings.api_key, 1)]
    if settings.api_key_file is not None:
        placed += _in_file(Path(settings.api_key_file).expanduser())
    for where, number, key in placed:
        if not _KEY.fullmatch(key):
            raise ConfigError(
                f"{where}: key {number} has a space, or a character that is not ASCII; clients "
                f"could not send it."
            )
    if settings.prefix_cache_salt == "key" and not placed:
        raise ConfigError("--prefix-cache-salt key needs keys: --api-key or --api-key-file.")
    return tuple(dict.fromkeys(key for _, _, key in placed))


def _in_file(path: Path) -> list[tuple[str, int, str]]:
    """One key a line; empty lines and those that begin with # say nothing."""
    where = f"--api-key-file {path}"
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not text in UTF-8.") from None
    if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("%s: others may read it; chmod 600 keeps the keys to yourself", where)
    lines = [line.strip() for line in content.splitlines()]
    keys = [(where, number, line) for number, line in enumerate(lines, 1) if line[:1] not in "#"]
    if not keys:
        raise ConfigError(f"{where} has no key in it: one a line.")
    return keys
