"""`Fault`: something that is to go wrong in an engine, and when. Written and read as text.

    ACTION[:SECONDS]@CONDITION[@CONDITION...]

    raise@step=7            step 7 of every incarnation of the engine raises an exception, once
    raise@token=17          so does every step that computes a prompt with token 17, each time
    delay:2.5@step=3        step 3 takes 2.5 seconds longer
    oom@token=19            out of memory
    exit@token=17@epoch=0   the process leaves without a word; the restarted one does not
    kill@step=5             the process is killed (SIGKILL)
    freeze@step=9           the process is stopped (SIGSTOP): a device that hangs
    lose-message@step=9     step 9 is computed, and its report never sent

All conditions must hold. `step` counts the steps of one incarnation from 0, `epoch` is the number
of the incarnation: 0 for the first.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

ACTIONS = ("raise", "delay", "oom", "exit", "kill", "freeze", "lose-message")
_CONDITIONS = ("step", "token", "epoch")
_EXAMPLE = "as raise@step=7, delay:2.5@step=3 or exit@token=17"
_WHOLE = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong (`action`), and when: None means at any. A fault of a step strikes once,
    one of a token whenever a sequence is computed whose prompt has it."""

    action: str
    seconds: float = 0.0  # of a delay
    step: int | None = None
    token: int | None = None
    epoch: int | None = None

    def __str__(self) -> str:
        seconds = f":{self.seconds:g}" if self.action == "delay" else ""
        given = [(name, getattr(self, name)) for name in _CONDITIONS]
        conditions = [f"@{name}={value}" for name, value in given if value is not None]
        return f"{self.action}{seconds}{''.join(conditions)}"


def parse_fault(text: str) -> Fault:
    """The fault that `text` describes.

    Raises:
        ValueError: the rest of a sentence, "must ...", that says what is wrong with it.
    """
    first, *conditions = text.strip().split("@")
    action, colon, rest = first.partition(":")
    if action not in ACTIONS:
        raise ValueError(f"must begin with one of {', '.join(ACTIONS)}, {_EXAMPLE}, not {action!r}")
    if (action == "delay") != bool(colon):
        raise ValueError("must say how many seconds a delay takes, and nothing else has any")
    when: dict[str, int] = {}
    for condition in conditions:
        name, _, value = condition.partition("=")
        if name not in _CONDITIONS or name in when or not _WHOLE.fullmatch(value):
            raise ValueError(
                f"must have conditions step=N, token=N or epoch=N, each once and with a whole "
                f"number, {_EXAMPLE}, not {condition!r}"
            )
        when[name] = int(value)
    if not when.keys() & {"step", "token"}:
        raise ValueError(f"must say when: @step=N or @token=N, {_EXAMPLE}")
    return Fault(action=action, seconds=_seconds(rest) if colon else 0.0, **when)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < 1e6:
        raise ValueError(f"must have a number of seconds above 0 after delay:, not {text!r}")
    return seconds
