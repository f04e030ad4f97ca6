"""The program that tries grammars out, in a process that may be killed at any time:

    python -m octavo.server.text.grammar_helper MODEL_FOLDER MEMORY_BYTES CPU_SECONDS PARENT_PID

It reads one `Trial` a line as JSON and answers with one `Verdict` a line. A grammar that takes too
much memory or time takes this process with it and nothing else.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark

from octavo.engine.lifeline import die_with
from octavo.engine.params import GrammarKind, GrammarSpec

from .grammar_check import Trial, Verdict
from .json_schema import step
from .schema_end import can_end

_STEPS = 48  # tokens of an answer that are tried
_TRIAL_SECONDS = 0.6  # of CPU for all of their masks: in the engine everybody waits for them
_SUSPECTS = 400  # parts of a schema that are tried to find the one at fault


class _Bench:
    def __init__(self, folder: Path) -> None:
        description = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        description |= {"truncation": None, "padding": None}
        self._tokenizer = LLTokenizer(json.dumps(description))

    def judge(self, trial: Trial) -> Verdict:
        if trial.spec.kind is GrammarKind.GBNF:
            return self._judge_gbnf(trial)
        error, path = self._fault(trial.spec), trial.path
        if trial.spec.kind is GrammarKind.JSON_SCHEMA:
            root = json.loads(trial.spec.text)
            if error is None:
                ends = can_end(root)
                return Verdict(error=None if ends else "it refers to itself without end", path=path)
            for suspect, inner in _parts(root, trial.path):
                found = self._fault(_alone(suspect, root))
                if found is not None:
                    error, path = found, inner
                    break
        return Verdict(error=error, path=path)

    def _judge_gbnf(self, trial: Trial) -> Verdict:
        try:
            lark = gbnf_to_lark(trial.spec.text)
        except Exception as error:  # the converter raises whatever its tables and indexes raise
            return Verdict(error=_sentence(str(error)), path=trial.path)
        fault = self._fault(GrammarSpec(GrammarKind.LARK, lark))
        return Verdict(error=fault, path=trial.path, lark=lark)

    def _fault(self, spec: GrammarSpec) -> str | None:
        """Compile, and follow the grammar for some tokens as an answer would."""
        limits = LLParserLimits(verbose_errors=False)
        try:
            matcher = LLMatcher(self._tokenizer, spec.source, log_level=0, limits=limits)
        except ValueError as error:
            return _sentence(str(error))
        began = time.process_time()
        for _ in range(_STEPS):
            mask = matcher.compute_bitmask()
            if matcher.is_error():
                return _sentence(matcher.get_error())
            if time.process_time() - began > _TRIAL_SECONDS:
                return "it takes too long to follow"
            if matcher.is_stopped():
                return None if matcher.is_accepting() else "nothing satisfies it"
            if not any(mask):
                return "nothing satisfies it"
            if not matcher.consume_token(_some_token(mask)):
                return _sentence(matcher.get_error())
            if matcher.is_stopped():
                return None
        return None


def _some_token(mask: bytes) -> int:
    """The allowed token in the middle of the vocabulary: rarely a control token or one letter."""
    middle = len(mask) // 2
    at = next(i for i in chain(range(middle, len(mask)), range(middle)) if mask[i])
    lowest_bit = mask[at] & -mask[at]
    return 8 * at + lowest_bit.bit_length() - 1


def _sentence(error: str) -> str:
    """The first line of the library's message that says something."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (said or lines or ["it is no grammar"])[0].rstrip(".")[:300]


def _parts(root: Any, path: str) -> Iterator[tuple[Any, str]]:
    """Schemas inside a schema and the paths of their places, innermost first, `_SUSPECTS` at most.

    For each also the single keywords that may be at fault by themselves.
    """
    found: list[tuple[Any, str]] = []
    _collect(root, path, found)
    yield from found[:_SUSPECTS]


def _collect(schema: Any, path: str, found: list[tuple[Any, str]]) -> None:
    if not isinstance(schema, dict) or len(found) >= _SUSPECTS:
        return
    for key, value in schema.items():
        here = step(path, key)
        if key in ("properties", "patternProperties", "$defs", "definitions"):
            for name, inner in value.items():
                _collect(inner, step(here, name), found)
        elif key in ("anyOf", "allOf", "oneOf", "prefixItems"):
            for i, inner in enumerate(value):
                _collect(inner, step(here, i), found)
        elif key in ("items", "additionalProperties"):
            _collect(value, here, found)
        if key in ("pattern", "enum", "const", "oneOf", "multipleOf", "patternProperties"):
            found.append(({key: value}, here))
    found.append((schema, path))


def _alone(schema: Any, root: Any) -> GrammarSpec:
    """A part of a schema as one of its own, with the definitions it may refer to."""
    text = json.dumps({**_definitions(root), **schema}, ensure_ascii=False)
    return GrammarSpec(GrammarKind.JSON_SCHEMA, text)


def _definitions(root: Any) -> dict[str, Any]:
    return {key: root[key] for key in ("$defs", "definitions") if key in root}


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0])
    memory, cpu_seconds, parent = (int(argument) for argument in arguments[1:])
    die_with(parent)
    bench = _Bench(folder)
    # Memory is counted from here: the tokenizer's own size depends on the model.
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory, used + memory))
    decoder = msgspec.json.Decoder(Trial)
    sys.stdout.buffer.write(msgspec.json.encode(Verdict()) + b"\n")  # ready
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        spent = int(time.process_time()) + 1
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (spent + cpu_seconds, hard))
        verdict = bench.judge(decoder.decode(line))
        sys.stdout.buffer.write(msgspec.json.encode(verdict) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
