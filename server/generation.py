"""`Generation`: prompts in, text out as it is made; stopping nobody's business but its own.

Token ids of the engine become text here: detokenized, searched for stop strings, with the
log-probabilities of each token held back until its text may be shown. A choice whose stop string
was found is ended in the engine at once. Closing or cancelling a stream aborts all it runs.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from octavo.engine.params import SEED_BITS, FinishReason, PoolingParams, Request, SamplingParams
from octavo.engine.step import Delta, TokenLogprobs

from .observe.tally import Tally
from .text.choice import ChoiceText, Piece, ScoredToken

if TYPE_CHECKING:
    from octavo.engine.async_engine import AsyncEngine

    from .admission import Permit
    from .models import ServedModel
    from .observe.metrics import Metrics


class TextDelta(NamedTuple):
    """What one choice gained. The last one of a choice has a finish reason."""

    index: int  # type: ignore[assignment]  # prompt's place * n + choice
    pieces: tuple[Piece, ...] = ()  # of its text
    token_ids: tuple[int, ...] = ()
    scores: tuple[ScoredToken, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # on the first delta of a prompt, where asked
    cached_tokens: int = 0  # of the prompt, on its first delta
    embedding: tuple[float, ...] = ()  # where it is what the job wants
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or token id that ended it

    @property
    def text(self) -> str:
        return self.pieces[0][1] if len(self.pieces) == 1 else "".join([s for _, s in self.pieces])


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one HTTP request wants generated."""

    id: str
    permit: Permit
    model: ServedModel
    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    pooling: PoolingParams | None = None  # embeddings are wanted, no text
    priority: int = 0
    cache_salt: str = ""

    @property
    def choices(self) -> int:
        """Choices of all prompts."""
        return len(self.prompts) * self.params.n


class Generation:
    """All generation of a daemon: runs and counts jobs."""

    def __init__(self, engine: AsyncEngine, metrics: Metrics, *, at_once: int | None) -> None:
        """`at_once`: sequences that one job may give the engine to think about, so that it keeps
        nobody else waiting for all of its prompts; None: as many as the engine runs."""
        self._engine = engine
        self._metrics = metrics
        self._at_once = at_once
        self._numbers = itertools.count()

    def stream(self, job: Job, tally: Tally) -> AsyncGenerator[TextDelta, None]:
        """Deltas of all choices of all prompts, in the order they are made.

        Raises:
            EngineDead, Draining, SequenceFailed: it could not be finished.
            DeadlineExceeded, ReaderTooSlow: it was not to be.
        """
        tally.begin(job.params, prompt_tokens=sum(map(len, job.prompts)), prompts=len(job.prompts))
        most = self._at_once or self._engine.capacity.max_num_seqs
        at_once = max(1, most // job.params.n)
        streams = self._each(job, tally, at_once)
        return next(streams) if len(job.prompts) == 1 else _merged(streams, at_once=at_once)

    def _each(
        self, job: Job, tally: Tally, at_once: int
    ) -> Iterator[AsyncGenerator[TextDelta, None]]:
        for place, prompt in enumerate(job.prompts):
            # Those that had to wait for others of their kind do not overtake who came meanwhile.
            arrival = tally.arrival if place < at_once else time.monotonic()
            yield self._one(job, place, prompt, tally, arrival)

    async def _one(
        self, job: Job, place: int, prompt: Sequence[int], tally: Tally, arrival: float
    ) -> AsyncGenerator[TextDelta, None]:
        params, first_index = job.params, place * job.params.n
        request = Request(
            # Ids of clients may repeat; this one must not.
            id=f"{job.id}/{next(self._numbers)}",
            prompt_token_ids=tuple(prompt),
            sampling=params,
            pooling=job.pooling,
            seed=secrets.randbits(SEED_BITS) if params.seed is None else params.seed,
            arrival=arrival,
            deadline=job.permit.deadline,
            priority=job.priority,
            cache_salt=_salt(tally.cache_owner, job.cache_salt),
        )
        choices = [ChoiceText(job.model.tokenizer, params) for _ in range(params.n)]
        ended: set[int] = set()
        begun = False
        scored = params.prompt_logprobs is not None
        made = self._engine.generate(request)
        async with aclosing(_scored_first(made) if scored else made) as deltas:
            async for delta in deltas:
                index = delta.index
                if index in ended:
                    continue  # the engine had computed it before it heard of the end
                choice = choices[index]
                if not begun:
                    begun = True
                    job.permit.begin(len(prompt))
                    self._first_token(tally, len(prompt), delta)
                pieces, scores, tokens = choice.take(delta)
                self._count(tally, first_index + index, tokens)
                if choice.finished:
                    ended.add(index)
                    if not delta.last:
                        self._engine.finish_choice(request.id, index)
                    tally.finish(first_index + index, choice.finish_reason, delta.timing)
                yield TextDelta(
                    index=first_index + index,
                    pieces=pieces,
                    token_ids=delta.token_ids[:tokens],
                    scores=scores,
                    prompt_logprobs=delta.prompt_logprobs,
                    cached_tokens=delta.cached_tokens or 0 if index == 0 else 0,
                    embedding=delta.embedding or (),
                    finish_reason=choice.finish_reason,
                    stop_reason=choice.stop_reason,
                )

    def _first_token(self, tally: Tally, prompt_tokens: int, delta: Delta) -> None:
        cached = delta.cached_tokens or 0
        seconds = time.monotonic() - tally.arrival
        tally.first_token(seconds, cached)
        self._metrics.on_first_token(
            seconds=seconds, prompt_tokens=prompt_tokens, cached_tokens=cached
        )

    def _count(self, tally: Tally, index: int, tokens: int) -> None:
        if tokens:
            self._metrics.on_tokens(tokens, gap_seconds=tally.tokens(index, tokens))


async def _scored_first(deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
    """The same deltas; those of choice 0, which brings the prompt's scores, come first."""
    held: list[Delta] | None = []
    async with aclosing(deltas):
        async for delta in deltas:
            if held is None:
                yield delta
            elif delta.index != 0:
                held.append(delta)
            else:
                yield delta
                for other in held:
                    yield other
                held = None


def _salt(owner: str, given: str) -> str:
    """No two pairs become the same text: an owner has no slash in it."""
    return f"{owner}/{given}" if owner else given


async def _merged(
    streams: Iterator[AsyncGenerator[TextDelta, None]], *, at_once: int
) -> AsyncGenerator[TextDelta, None]:
    """So many streams at once, each item as it comes; the first failure ends them all.

    Who does not read them keeps them from going on.
    """
    arrived: asyncio.Queue[TextDelta | Exception | None] = asyncio.Queue(at_once)

    async def pump() -> None:
        try:
            for stream in streams:  # each pump takes the next one that nobody has taken
                async with aclosing(stream):
                    async for item in stream:
                        await arrived.put(item)
        except Exception as error:  # to be raised where the streams are read
            await arrived.put(error)
        else:
            await arrived.put(None)

    pumps = [asyncio.create_task(pump()) for _ in range(at_once)]
    try:
        for _ in pumps:
            while (item := await arrived.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
