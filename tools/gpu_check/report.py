"""What the blocks found: figures, checks, and what was not run and why. JSON, kept as it comes."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a block is to do. `small`: sizes that an interpreter on a CPU can bear."""

    device: str
    small: bool
    seconds: float  # that the block may take
    vllm_python: str | None = None  # an interpreter that has vLLM
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.began)

    def need(self, seconds: float) -> None:
        """Raises Missing where the block's time does not suffice for work of so many seconds."""
        if not self.small and self.left < seconds:
            raise Missing(
                f"{max(0, self.left):.0f} s of the block's {self.seconds:.0f} s were left, and it "
                f"takes about {seconds:.0f} s; --only runs it by itself"
            )


@dataclass(slots=True)
class Report:
    """Entries of one block by name; saved after each, so that a killed block has told what it had
    found."""

    path: Path
    only: str = ""  # attempts whose name has this in it
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    _under_way: int = 0  # attempts, one within the other

    def figure(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        share: float | None = None,
        of: str = "",
        capped: str = "",
    ) -> None:
        """A measured value. `share`: of the ceiling that `of` names. `capped`: what of the load was
        left out, for time."""
        entry: dict[str, Any] = {"value": value, "unit": unit}
        if share is not None:
            entry |= {"share": share, "of": of}
        if capped:
            entry["capped"] = capped
        self._keep(name, entry)

    def check(self, name: str, passed: bool, told: str = "") -> None:
        self._keep(name, {"passed": bool(passed), "told": told})

    def not_run(self, name: str, reason: str) -> None:
        self._keep(name, {"not_run": reason})

    def failed(self, name: str, error: Exception) -> None:
        trace = "".join(traceback.format_exception(error)[-4:])
        self._keep(name, {"failed": f"{type(error).__name__}: {error}", "trace": trace})

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        """Do the work; what goes wrong is told under its name, and the rest goes on."""
        if self._under_way == 0 and self.only not in name:
            return
        self._under_way += 1
        try:
            work()
        except Missing as reason:
            self.not_run(name, str(reason))
        except Exception as error:
            self.failed(name, error)
        finally:
            self._under_way -= 1

    def _keep(self, name: str, entry: dict[str, Any]) -> None:
        self.entries[name] = entry
        self.path.write_text(json.dumps(self.entries, indent=1) + "\n", "utf-8")
        print(f"  {name}: {told(entry)}", flush=True)


class Missing(Exception):
    """Something that is not installed or not there: its message says what."""


def told(entry: dict[str, Any]) -> str:
    """One line about an entry."""
    if "not_run" in entry:
        return f"not run: {entry['not_run']}"
    if "failed" in entry:
        return f"FAILED: {entry['failed']}"
    if "passed" in entry:
        verdict = "ok" if entry["passed"] else "WRONG"
        return f"{verdict} {entry['told']}".rstrip()
    text = f"{entry['value']:.4g} {entry['unit']}"
    if "share" in entry:
        text += f" ({entry['share']:.2f} of {entry['of']})"
    return f"{text} [{entry['capped']}]" if "capped" in entry else text


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns one below the other; the first row is their names."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
