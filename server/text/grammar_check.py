"""`GrammarCheck`: proves before a request is admitted that its grammar can be used.

Grammars are programs from strangers. They are tried out in a helper process
(`grammar_helper.py`) under limits of memory and time; one that kills the helper is refused like
one that does not compile, and the next trial starts a new helper.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import msgspec

from octavo.engine.errors import InvalidParameter
from octavo.engine.params import GrammarKind, GrammarSpec

_LARK = GrammarKind.LARK
_MAX_TEXT = 2 << 20  # characters of a grammar
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_REMEMBERED_TEXT = 16 << 20  # characters of all remembered grammars


class Trial(msgspec.Struct, frozen=True):
    """Does this compile? `path` is where its text stands in the request."""

    spec: GrammarSpec
    path: str


class Verdict(msgspec.Struct, frozen=True):
    """`error`: why the grammar cannot be used, or None. `path`: which part of it is at fault.
    `lark`: the text to use instead, where the grammar was of kind GBNF."""

    error: str | None = None
    path: str = ""
    lark: str | None = None


class GrammarCheck:
    """Verdicts on grammars, each given once and remembered. For one event loop.

    Args:
        folder: the checkpoint whose tokens an answer is made of.
        seconds: CPU time a trial may take; real time may be longer by `patience` on a busy machine.
        memory: bytes a trial may take.
    """

    def __init__(
        self, folder: Path, *, seconds: int = 3, patience: float = 10.0, memory: int = 512 << 20
    ) -> None:
        self._command = (
            sys.executable,
            "-P",  # no module is taken from the folder it is started in
            "-m",
            "octavo.server.text.grammar_helper",
            str(folder),
            str(memory),
            str(seconds),
            str(os.getpid()),
        )
        self._patience = seconds + patience
        self._helper: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._verdicts: OrderedDict[tuple[GrammarSpec, str], Verdict] = OrderedDict()
        self._text = 0

    async def check(self, spec: GrammarSpec, path: str) -> GrammarSpec:
        """The grammar in the form in which the engine can use it.

        Args:
            path: where the grammar stands in the request.

        Raises:
            InvalidParameter: it cannot; the message names the part that is at fault.
        """
        if len(spec.text) > _MAX_TEXT:
            raise InvalidParameter(
                f"{path} has {len(spec.text)} characters, but at most {_MAX_TEXT} are accepted.",
                param=path,
            )
        if _LONE_SURROGATE.search(spec.text):
            raise InvalidParameter(f"{path} has half a surrogate pair in it.", param=path)
        verdict = self._verdicts.get((spec, path)) or await self._try(Trial(spec, path))
        if verdict.error is not None:
            raise InvalidParameter(
                f"{verdict.path} cannot be enforced: {verdict.error}.", param=verdict.path
            )
        return spec if verdict.lark is None else replace(spec, kind=_LARK, text=verdict.lark)

    async def close(self) -> None:
        """End the helper."""
        async with self._turn:
            await self._end()

    async def _try(self, trial: Trial) -> Verdict:
        async with self._turn:
            known = self._verdicts.get((trial.spec, trial.path))  # somebody else's, meanwhile
            if known is not None:
                return known
            dead = Verdict(error="it takes too much time or memory", path=trial.path)
            try:
                async with asyncio.timeout(self._patience):
                    verdict = await self._ask(trial)
            except TimeoutError:  # perhaps the machine was just busy: not remembered
                await self._end()
                return dead
            except (EOFError, ConnectionError):
                await self._end()
                verdict = dead
            except asyncio.CancelledError:
                await self._end()  # its answer would be taken for the next trial's
                raise
            self._remember(trial, verdict)
            return verdict

    async def _ask(self, trial: Trial) -> Verdict:
        if self._helper is None or self._helper.returncode is not None:
            await self._start()
        helper = self._helper
        assert helper is not None and helper.stdin is not None, "started, with a pipe"
        helper.stdin.write(msgspec.json.encode(trial) + b"\n")
        await helper.stdin.drain()
        return await _read(helper)

    async def _start(self) -> None:
        """Raises InvalidParameter: it does not start with this model's tokenizer."""
        pipe = asyncio.subprocess.PIPE
        self._helper = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            await _read(self._helper)  # it is ready
        except EOFError:
            await self._end()
            raise InvalidParameter(
                "Answers of this model cannot be constrained: its tokenizer.json is not one that "
                "grammars can be compiled for."
            ) from None

    async def _end(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            if helper.returncode is None:
                helper.kill()
            await helper.wait()

    def _remember(self, trial: Trial, verdict: Verdict) -> None:
        self._verdicts[trial.spec, trial.path] = verdict
        self._text += len(trial.spec.text)
        while self._text > _REMEMBERED_TEXT and len(self._verdicts) > 1:
            (old, _), _ = self._verdicts.popitem(last=False)
            self._text -= len(old.text)


async def _read(helper: asyncio.subprocess.Process) -> Verdict:
    assert helper.stdout is not None, "started with a pipe"
    line = await helper.stdout.readline()
    if not line:
        raise EOFError
    return msgspec.json.decode(line, type=Verdict)
