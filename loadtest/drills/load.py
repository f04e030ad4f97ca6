"""`MixedLoad`: all kinds of the mix under way all the time, each answer held against the one that
the same daemon gave undisturbed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from .answer import Answer, ask
from .mix import MIX, Kind, Output
from .verdict import Check, none

_LIMIT_SECONDS = 3600.0  # for one answer, however often it is interrupted


@dataclass(slots=True)
class MixedLoad:
    """Requests of many kinds; each answer is compared with what it was undisturbed."""

    url: str
    kinds: tuple[Kind, ...] = MIX
    expected: dict[str, Output] = field(default_factory=dict)
    answers: int = 0
    failures: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    differing_logprobs: list[str] = field(default_factory=list)
    latest_event: float = 0.0  # perf_counter
    _flowing: set[str] = field(default_factory=set)
    _ending: bool = False

    @property
    def in_flight(self) -> int:
        """Streams of which the first event has come and the last one has not."""
        return len(self._flowing)

    async def learn(self) -> None:
        """Ask for each kind once, undisturbed. Raises ValueError: one fails even so."""
        answers = await asyncio.gather(*(self._ask(kind) for kind in self.kinds))
        for kind, answer in zip(self.kinds, answers, strict=True):
            if not answer.good:
                raise ValueError(f"{kind.name} fails undisturbed: {answer.why()}")
            self.expected[kind.name] = Output.of(answer)

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Within, every kind is asked for again and again; at the end each last answer is waited
        for."""
        self._ending = False
        async with asyncio.TaskGroup() as group:
            for kind in self.kinds:
                group.create_task(self._repeat(kind))
            try:
                yield
            finally:
                self._ending = True

    def checks(self) -> tuple[Check, ...]:
        return (
            none("failed requests", len(self.failures)),
            none("outputs that differ", len(self.differing)),
            none("log-probabilities that differ", len(self.differing_logprobs)),
        )

    def examples(self) -> str:
        """A few of the things that went wrong."""
        return "; ".join([*self.failures[:3], *self.differing[:3], *self.differing_logprobs[:2]])

    async def _repeat(self, kind: Kind) -> None:
        while not self._ending:
            answer = await self._ask(kind)
            self.judge(kind, answer)
            if not answer.good:
                await asyncio.sleep(0.2)  # a daemon that refuses is not to be flooded

    def judge(self, kind: Kind, answer: Answer) -> None:
        self.answers += 1
        if not answer.good:
            self.failures.append(f"{kind.name}: {answer.why()}")
            return
        expected, output = self.expected[kind.name], Output.of(answer)
        if not output.same_tokens(expected):
            self.differing.append(f"{kind.name}: {_difference(expected, output)}")
        elif output.logprobs != expected.logprobs:
            self.differing_logprobs.append(f"{kind.name}: {_first_other(expected, output)}")

    async def _ask(self, kind: Kind) -> Answer:
        def flows() -> None:
            self._flowing.add(kind.name)
            self.latest_event = time.perf_counter()

        try:
            return await ask(
                self.url, kind.path, kind.body, on_event=flows, limit_seconds=_LIMIT_SECONDS
            )
        finally:
            self._flowing.discard(kind.name)


def _first_other(expected: Output, output: Output) -> str:
    """Where log-probabilities of the same tokens differ first."""
    for one, other in zip(expected.logprobs, output.logprobs, strict=False):
        for place, (a, b) in enumerate(zip(one, other, strict=False)):
            if a != b:
                return f"at token {place} of {len(one)}, {a!r} / {b!r}"
    return "in their number"


def _difference(expected: Output, output: Output) -> str:
    for one, other in zip(expected.choices, output.choices, strict=False):
        if one != other:
            place = next(
                (i for i, (a, b) in enumerate(zip(one[2], other[2], strict=False)) if a != b),
                min(len(one[2]), len(other[2])),
            )
            return f"choice {one[0]} from token {place} of {len(one[2])}, {one[3]} / {other[3]}"
    return f"{len(output.choices)} choices of {output.completion_tokens} tokens"
