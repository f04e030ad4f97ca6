"""POST /v1/responses (API contract, section 8): a chat in other words.

Nothing is stored: each request brings its whole conversation.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from octavo.engine.errors import RequestError
from octavo.engine.params import FinishReason

from ..generation import TextDelta
from ..observe.tally import Tally
from ..text.message import MessageReader
from ..text.tool_parser import CallEnded, CallStarted, Content
from .body import to_schema
from .desk import Desk, Spent, Visit, answer, now
from .errors import shown_message
from .logprobs import TokenNames, chat_logprobs
from .responses_input import as_chat, in_own_words
from .responses_output import Events, EventWriter, NobodyListens, Output
from .responses_schema import (
    IncompleteDetails,
    InputTokensDetails,
    ModelResponse,
    OutputTokensDetails,
    ReasoningOptions,
    ResponseFailure,
    ResponsesRequest,
    ResponseUsage,
    TextOptions,
)
from .schema import ChatRequest
from .sse import stream_answer
from .turn import Turn, prepare_turn

if TYPE_CHECKING:
    from ..text.choice import ScoredToken
    from .answers import ChatTokenLogprob


class Responses:
    """The endpoint."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, request: Request) -> Response:
        """Answer a conversation, as one response or as a stream of events."""
        return await self._desk.serve(request, ResponsesRequest, self._answer)

    async def _answer(
        self, body: ResponsesRequest, raw: Mapping[str, Any], visit: Visit
    ) -> Response:
        tally = visit.tally
        turn = await self._turn(body, raw, f"resp_{body.request_id or tally.id}", visit)
        if not body.stream:
            making = _Making(body, turn, NobodyListens())
            await self._make(making, tally)
            return answer(making.response)
        writer = EventWriter()
        making = _Making(body, turn, writer)

        def failure(error: Exception) -> bytes:
            making.fail(error)
            return writer.taken()

        return await stream_answer(
            self._events(making, writer, tally),
            tally,
            ping_seconds=self._desk.settings.ping_interval,
            failure=failure,
        )

    async def _turn(
        self, body: ResponsesRequest, raw: Mapping[str, Any], answer_id: str, visit: Visit
    ) -> Turn:
        chat = as_chat(body, raw)
        try:
            return await prepare_turn(
                self._desk, to_schema(chat, ChatRequest), chat, answer_id=answer_id, visit=visit
            )
        except RequestError as error:
            raise in_own_words(error) from None

    async def _make(self, making: _Making, tally: Tally) -> None:
        async for delta in self._desk.generation.stream(making.turn.job, tally):
            making.take(delta)

    async def _events(
        self, making: _Making, writer: EventWriter, tally: Tally
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._desk.generation.stream(making.turn.job, tally)) as deltas:
            async for delta in deltas:
                making.take(delta)
                if events := writer.taken():
                    yield events


class _Making:
    """One response, from its first token on."""

    def __init__(self, body: ResponsesRequest, turn: Turn, events: Events) -> None:
        self.turn = turn
        self._events = events
        self._begun = False
        self._reader = MessageReader(turn.manner)
        self._output = Output(events)
        self._spent = Spent(len(turn.job.prompts[0]))
        self._names = TokenNames(turn.job.model.tokenizer)
        self._unshown: list[ScoredToken] = []  # whose text is in no part yet
        self.response = _blank(body, turn)
        self.response.output = self._output.items

    def take(self, delta: TextDelta) -> None:
        self._begin()
        self._spent.count(delta)
        self._unshown += delta.scores
        last = delta.finish_reason is not None
        for part in self._reader.read(delta.pieces, last=last):
            logprobs: Sequence[ChatTokenLogprob] = ()
            if not isinstance(part, CallStarted | CallEnded):
                tokens = self._tokens_of(part.text)
                if isinstance(part, Content):
                    logprobs = self._logprobs(tokens)
            self._output.add(part, logprobs)
        if delta.finish_reason is not None:
            self._end(delta.finish_reason)

    def fail(self, error: Exception) -> None:
        """It broke off."""
        self._begin()
        self._output.abandon()
        self.response.status = "failed"
        self.response.error = ResponseFailure(message=shown_message(error))
        self._events.tell("response.failed", response=self.response)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._events.tell("response.created", response=self.response)
            self._events.tell("response.in_progress", response=self.response)

    def _end(self, reason: FinishReason) -> None:
        response = self.response
        response.status = "incomplete" if reason is FinishReason.LENGTH else "completed"
        self._output.finish(response.status)
        if reason is FinishReason.LENGTH:
            response.incomplete_details = IncompleteDetails()
        else:
            response.completed_at = now()
        response.usage = self._usage()
        self._events.tell(f"response.{response.status}", response=response)

    def _usage(self) -> ResponseUsage:
        usage = self._spent.usage(reasoning_tokens=self._reader.reasoning_tokens)
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(
                cached_tokens=usage.prompt_tokens_details.cached_tokens
            ),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(
                reasoning_tokens=usage.completion_tokens_details.reasoning_tokens
            ),
            total_tokens=usage.total_tokens,
        )

    def _tokens_of(self, text: str) -> list[ScoredToken]:
        """Those that brought the next part. What stands before it, marks and white space around
        them, is of no part."""
        if not self._unshown:
            return []
        start = max(0, "".join([token.text for token in self._unshown]).find(text))
        tokens, place, passed = [], 0, 0
        for token in self._unshown:
            if place >= start + len(text):
                break
            # A token that only begins a character has bytes, but no text.
            if (place >= start and token.raw) or place + len(token.text) > start:
                tokens.append(token)
            place += len(token.text)
            passed += 1
        del self._unshown[:passed]
        return tokens

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> Sequence[ChatTokenLogprob]:
        top = self.turn.scores.output
        return () if top is None else chat_logprobs(tokens, self._names, top=top).content


def _blank(body: ResponsesRequest, turn: Turn) -> ModelResponse:
    """The response before its first token."""
    params = turn.job.params
    text = body.text or TextOptions()
    return ModelResponse(
        id=turn.job.id,
        created_at=now(),
        model=body.model or turn.job.model.name,
        output=[],
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        prompt_cache_key=body.prompt_cache_key,
        reasoning=body.reasoning or ReasoningOptions(),
        safety_identifier=body.safety_identifier,
        temperature=params.temperature,
        text=TextOptions(format=text.format or {"type": "text"}, verbosity=text.verbosity),
        tool_choice="auto" if body.tool_choice is None else body.tool_choice,
        tools=body.tools or [],
        top_logprobs=body.top_logprobs or 0,
        top_p=params.top_p,
        user=body.user,
    )
