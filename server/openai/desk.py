"""`Desk`: what every endpoint needs, and what both generation endpoints do alike."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.responses import Response

from octavo.engine.errors import DeadlineExceeded, EngineDead
from octavo.engine.params import FinishReason
from octavo.engine.step import TokenLogprobs

from ..generation import Generation, Job, TextDelta
from ..observe.tally import Tally
from ..text.choice import ScoredToken
from ..text.message import Part
from .answers import CompletionTokensDetails, PromptTokensDetails, Usage
from .body import parse_json, read_body, to_schema
from .schema import GenerationRequest, TimedRequest
from .sse import unless_gone

if TYPE_CHECKING:
    from starlette.requests import Request

    from octavo.engine.async_engine import AsyncEngine

    from ..admission import Admission, Permit
    from ..models import ModelPool, ServedModel
    from ..settings import Settings
    from ..text.grammar_check import GrammarCheck
    from ..text.template_worker import Renderer
    from ..threads import Threads

Schema = TypeVar("Schema", bound=msgspec.Struct)
TimedSchema = TypeVar("TimedSchema", bound=TimedRequest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Shared by all endpoints of one application."""

    settings: Settings
    engine: AsyncEngine
    models: ModelPool
    admission: Admission
    generation: Generation
    threads: Threads
    checks: Mapping[Path, GrammarCheck]  # of grammars, by folder of the model
    renderer: Renderer  # of the models' own chat templates
    strangers_renderer: Renderer  # of those that requests bring: a slow one delays no others
    fingerprint: str  # the same for the same configuration

    async def read(
        self, request: Request, schema: type[Schema]
    ) -> tuple[Schema, dict[str, Any], int]:
        """The body, checked, as it came, and its length in bytes. Raises RequestError."""
        body = await self._body(request)
        return *(await self._parsed(body, schema)), len(body)

    async def serve(
        self,
        request: Request,
        schema: type[TimedSchema],
        work: Callable[[TimedSchema, dict[str, Any], Visit], Coroutine[Any, Any, Response]],
    ) -> Response:
        """What `work` makes of the body, checked and as it came.

        From when the body is there the request has a place in the queue, and is watched: `work` is
        cancelled when the client leaves, or when its time is up.

        Raises:
            RequestError: the client's to mend; among them that its time is up.
            Overloaded, Draining: it may not come in.
            ClientDisconnect: nobody wants the answer any more.
        """
        permit: Permit = request.scope["state"]["permit"]
        body = await self._body(request)
        permit.enter()
        visit = Visit(request.scope["state"]["tally"], permit, len(body))

        async def answered() -> Response:
            parsed, raw = await self._parsed(body, schema)
            permit.limit_time(parsed.timeout)
            if permit.seconds_left is not None:
                limit.reschedule(asyncio.get_running_loop().time() + permit.seconds_left)
            return await work(parsed, raw, visit)

        try:
            async with asyncio.timeout(permit.seconds_left) as limit:
                return await unless_gone(request.receive, answered())
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded from None

    async def _body(self, request: Request) -> bytes:
        return await read_body(
            request,
            share=request.scope["state"]["share"],
            limit=self.settings.max_body_size,
            seconds=self.settings.body_timeout,
        )

    async def _parsed(self, body: bytes, schema: type[Schema]) -> tuple[Schema, dict[str, Any]]:
        def parse() -> tuple[Schema, dict[str, Any]]:
            raw = parse_json(body)
            return to_schema(raw, schema), raw

        return await self.threads.run(parse, size=len(body))

    def check_of(self, model: ServedModel) -> GrammarCheck:
        """Who finds out whether a grammar can be used for answers of `model`."""
        return self.checks[model.folder]

    def renderer_of(self, given: str | None) -> Renderer:
        """Who renders the chat template `given` by a request; None: the model's own."""
        return self.renderer if given is None else self.strangers_renderer

    def require_accepting(self) -> None:
        """Raises EngineDead: a request can be neither served nor wait for a restart; and why."""
        if not self.engine.status.accepting:
            raise self._not_ready()

    def require_ready(self) -> None:
        """Raises EngineDead: nothing can be generated right now, and why."""
        if not self.engine.status.ready:
            raise self._not_ready()

    def _not_ready(self) -> EngineDead:
        status = self.engine.status
        detail = f": {status.detail}" if status.detail else ""
        return EngineDead(f"The engine is {status.stage}{detail.rstrip('.')}.")


@dataclass(frozen=True, slots=True)
class Visit:
    """What those at the door opened for a request, and how many bytes it brought."""

    tally: Tally
    permit: Permit
    size: int


def answer(content: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")


def answer_id(kind: str, request: GenerationRequest, tally: Tally) -> str:
    """ "cmpl-..." with the client's own id in it where it gave one."""
    return f"{kind}-{request.request_id or tally.id or secrets.token_hex(12)}"


def now() -> int:
    return int(time.time())


@dataclass(slots=True)
class Spent:
    """Tokens used by one request so far."""

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0

    def count(self, delta: TextDelta) -> None:
        self.cached_tokens += delta.cached_tokens
        self.completion_tokens += len(delta.token_ids)

    def usage(self, *, reasoning_tokens: int = 0) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self.cached_tokens),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning_tokens),
        )


@dataclass(slots=True)
class Gathered:
    """One choice, as far as its deltas have come."""

    text: str = ""
    parts: list[Part] = field(default_factory=list)  # of the message, where it is read as one
    token_ids: list[int] = field(default_factory=list)
    scores: list[ScoredToken] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    @property
    def mean_logprob(self) -> float:
        total = sum(token.logprobs.logprob for token in self.scores)
        return total / max(1, len(self.scores))


def size_of(choices: Sequence[Gathered]) -> int:
    """Bytes, about, of the JSON in which they are told."""
    return sum(
        len(choice.text)
        + 8 * len(choice.token_ids)
        + _size_of_scores([scored.logprobs for scored in choice.scores[:1]], len(choice.scores))
        + _size_of_scores(choice.prompt_logprobs[:1], len(choice.prompt_logprobs))
        for choice in choices
    )


def _size_of_scores(first: Sequence[TokenLogprobs], count: int) -> int:
    return sum(64 * count * (1 + len(scores.top_ids)) for scores in first)


async def gather(
    job: Job,
    deltas: AsyncIterable[TextDelta],
    spent: Spent,
    read: Callable[[TextDelta], list[Part]] = lambda delta: [],
) -> list[Gathered]:
    """All choices of all prompts, complete: the joined deltas, so that they equal a stream's.

    Args:
        read: gives the parts of the message that a delta brings.
    """
    choices = [Gathered() for _ in range(job.choices)]
    texts: list[list[str]] = [[] for _ in choices]
    async for delta in deltas:
        spent.count(delta)
        choice = choices[delta.index]
        texts[delta.index].append(delta.text)
        choice.parts += read(delta)
        choice.token_ids += delta.token_ids
        choice.scores += delta.scores
        choice.prompt_logprobs += delta.prompt_logprobs
        choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
    for choice, pieces in zip(choices, texts, strict=True):
        choice.text = "".join(pieces)
    return choices
