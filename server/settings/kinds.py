"""What kinds of values settings have: how each is read, and written so that it can be read again.

A value arrives as text (a flag, a variable) or as YAML made it. Human numbers are taken: `32k`
tokens are 32768, `4GiB` are 4 * 2**30 bytes, `1.5m` are 90 seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo.engine.faults.fault import parse_fault

_NUMBER = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)\s*")
_TOKEN_UNITS = {"": 1, "k": 2**10, "m": 2**20}
_BYTE_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    # A bare letter is binary, as with `docker run --memory 4g`.
    _BYTE_UNITS |= {_letter: 2 ** (10 * _power), f"{_letter}ib": 2 ** (10 * _power)}
    _BYTE_UNITS[f"{_letter}b"] = 1000**_power
_SECOND_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Kind:
    """`read` raises ValueError with the rest of a sentence: "must be ..."."""

    metavar: str
    read: Callable[[object], Any]
    show: Callable[[Any], str] = str
    many: bool = False  # the flag may be given several times
    is_switch: bool = False  # the flag takes no value: --x, --no-x


def _fail(limit: str) -> ValueError:
    return ValueError(f"must be {limit}")


def text(metavar: str = "TEXT") -> Kind:
    def read(value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
            raise _fail("a text that is not empty")
        return str(value)

    return Kind(metavar, read)


def texts(metavar: str = "TEXT") -> Kind:
    """One or more, comma-separated, as a YAML list, or by repeating the flag."""

    def read(value: object) -> tuple[str, ...]:
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        cleaned = tuple(str(part).strip() for part in parts)
        if value is None or not all(cleaned):
            raise _fail("one or more texts that are not empty, comma-separated")
        return cleaned

    return Kind(metavar, read, ",".join, many=True)


def faults() -> Kind:
    """Faults on purpose, in the words of `octavo.engine.faults.fault`."""
    listed = texts("FAULT")

    def read(value: object) -> tuple[str, ...]:
        return tuple(str(parse_fault(text)) for text in listed.read(value))

    return Kind(listed.metavar, read, listed.show, many=True)


def choice(*words: str, also: dict[str, str] | None = None) -> Kind:
    """One of some words. `also`: other spellings of them."""

    def read(value: object) -> str:
        word = str(value).lower()
        word = (also or {}).get(word, word)
        if word not in words:
            raise _fail(" or ".join((", ".join(words[:-1]), words[-1])) if words[1:] else words[0])
        return word

    return Kind("|".join(words), read)


def switch() -> Kind:
    def read(value: object) -> bool:
        if isinstance(value, bool):
            return value
        word = str(value).lower()
        if word in ("1", "true", "yes", "on"):
            return True
        if word in ("0", "false", "no", "off"):
            return False
        raise _fail("true or false")

    return Kind("", read, lambda value: "true" if value else "false", is_switch=True)


def integer(low: int, high: int | None = None) -> Kind:
    limit = f"a whole number {f'>= {low}' if high is None else f'from {low} to {high}'}"
    if low == high:
        limit = str(low)

    def read(value: object) -> int:
        return _whole(value, {"": 1}, low, high, limit)

    return Kind("N", read)


def tokens(low: int = 1) -> Kind:
    def read(value: object) -> int:
        return _whole(value, _TOKEN_UNITS, low, None, f"a number of tokens >= {low}, as 4096 or 4k")

    return Kind("TOKENS", read)


def byte_size(low: int = 0, *, bare_gib_below: int = 0) -> Kind:
    """`bare_gib_below`: a number without unit below it is in GiB (vLLM's --swap-space 4)."""

    def read(value: object) -> int:
        size = _whole(value, _BYTE_UNITS, 0, None, "a size, as 512MiB or 4GiB")
        if size < bare_gib_below and (not isinstance(value, str) or value.strip().isdigit()):
            size *= 2**30
        if size < low:
            raise _fail(f"at least {show_bytes(low)}")
        return size

    return Kind("SIZE", read, show_bytes)


def fraction() -> Kind:
    def read(value: object) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not 0 < number <= 1:
            raise _fail("a number above 0 and at most 1")
        return number

    return Kind("SHARE", read, "{:g}".format)


def seconds(low: float = 0.0) -> Kind:
    def read(value: object) -> float:
        return _scaled(value, _SECOND_UNITS, low, f"a time >= {low:g} seconds, as 30, 30s or 5m")

    return Kind("SECONDS", read, "{:g}".format)


def optional(kind: Kind, word: str) -> Kind:
    """`kind`, or the word that stands for None."""

    def read(value: object) -> Any:
        if value is None or (isinstance(value, str) and value.lower() == word):
            return None
        try:
            return kind.read(value)
        except ValueError as error:
            raise ValueError(f"{error}, or {word}") from None

    def show(value: Any) -> str:
        return word if value is None else kind.show(value)

    return Kind(f"{kind.metavar}|{word}", read, show, many=kind.many)


def show_bytes(size: int) -> str:
    """The shortest exact way to write a size: 4294967296 is 4GiB."""
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size and size % (1 << power) == 0:
            return f"{size >> power}{unit}"
    return str(size)


def _whole(value: object, units: dict[str, int], low: int, high: int | None, limit: str) -> int:
    number = _scaled(value, {unit: float(factor) for unit, factor in units.items()}, low, limit)
    if number != int(number) or (high is not None and number > high):
        raise _fail(limit)
    return int(number)


def _scaled(value: object, units: dict[str, float], low: float, limit: str) -> float:
    if isinstance(value, bool):
        raise _fail(limit)
    if isinstance(value, int | float):
        number = float(value)
    else:
        match = _NUMBER.fullmatch(str(value))
        if match is None or match[2].lower() not in units:
            raise _fail(limit)
        number = float(match[1].replace("_", "")) * units[match[2].lower()]
    if not low <= number < math.inf:
        raise _fail(limit)
    return number
