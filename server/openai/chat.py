"""POST /v1/chat/completions (API contract, section 3)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from octavo.engine.params import FinishReason

from ..generation import TextDelta
from ..observe.tally import Tally
from ..text.message import MessageReader, Part
from ..text.tool_parser import Content
from .answers import ChatChoice, ChatChunkChoice, ChatCompletion, ChatDelta, ChatLogprobs, Usage
from .conversation import message_text
from .desk import Desk, Gathered, Spent, Visit, answer, answer_id, gather, now, size_of
from .logprobs import TokenNames, chat_logprobs, prompt_logprobs
from .messages import delta_of, message_of
from .schema import ChatRequest
from .sse import DONE, ChunkWriter, stream_answer
from .turn import Turn, prepare_turn

if TYPE_CHECKING:
    from ..text.choice import ScoredToken


class Chat:
    """The endpoint."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, request: Request) -> Response:
        """Answer a conversation n times, as one answer or as a stream."""
        return await self._desk.serve(request, ChatRequest, self._answer)

    async def _answer(self, body: ChatRequest, raw: Mapping[str, Any], visit: Visit) -> Response:
        tally = visit.tally
        turn = await prepare_turn(
            self._desk, body, raw, answer_id=answer_id("chatcmpl", body, tally), visit=visit
        )
        job = turn.job
        form = _Form(body, turn, created=now(), fingerprint=self._desk.fingerprint)
        spent = Spent(len(job.prompts[0]))
        if body.stream:
            events = self._events(form, spent, tally)
            return await stream_answer(
                events, tally, ping_seconds=self._desk.settings.ping_interval
            )
        choices = await gather(job, self._desk.generation.stream(job, tally), spent, form.read)
        return await self._desk.threads.run(
            lambda: answer(form.whole(choices, spent)), size=size_of(choices)
        )

    async def _events(self, form: _Form, spent: Spent, tally: Tally) -> AsyncGenerator[bytes, None]:
        options = form.body.stream_options
        continuous = bool(options and options.continuous_usage_stats)
        last = bool(options and options.include_usage)
        writer = ChunkWriter(form.constant, with_usage=last or continuous)
        begun: set[int] = set()
        async with aclosing(self._desk.generation.stream(form.turn.job, tally)) as deltas:
            async for delta in deltas:
                opening = b""
                if delta.index not in begun:
                    more = {} if begun else form.once
                    usage = form.usage(spent) if continuous else None
                    opening = writer.chunk(form.opening(delta.index), usage, **more)
                    begun.add(delta.index)
                spent.count(delta)
                pieces = form.pieces(delta)
                usage = form.usage(spent) if continuous else None
                if events := opening + b"".join([writer.chunk(p, usage) for p in pieces]):
                    yield events
        if last:
            yield writer.chunk(None, form.usage(spent))
        yield DONE


@dataclass(slots=True)
class _Form:
    """How this client wants its answer to look."""

    body: ChatRequest
    turn: Turn
    created: int
    fingerprint: str
    names: TokenNames = field(init=False)
    _readers: dict[int, MessageReader] = field(default_factory=dict)  # by choice

    def __post_init__(self) -> None:
        self.names = TokenNames(
            self.turn.job.model.tokenizer, as_ids=bool(self.body.return_tokens_as_token_ids)
        )

    @property
    def constant(self) -> dict[str, object]:
        """What is the same in every chunk."""
        return {
            "id": self.turn.job.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.body.model or self.turn.job.model.name,
            "system_fingerprint": self.fingerprint,
        }

    @property
    def once(self) -> dict[str, object]:
        """What only the first chunk of a stream has."""
        if not self.body.return_token_ids:
            return {}
        return {"prompt_token_ids": list(self.turn.job.prompts[0])}

    @property
    def echo(self) -> str:
        """The turn that is continued, where it is to be repeated."""
        last = self.body.messages[-1]
        if not self.body.echo or last.role != "assistant":
            return ""
        return message_text(last)

    def opening(self, index: int) -> ChatChunkChoice:
        """The first chunk of a choice."""
        return ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=self.echo))

    def usage(self, spent: Spent) -> Usage:
        thinking = sum(reader.reasoning_tokens for reader in self._readers.values())
        return spent.usage(reasoning_tokens=thinking)

    def read(self, delta: TextDelta) -> list[Part]:
        """What a delta brings of its choice's message, where that is not just content."""
        if self.turn.manner.plain:
            return []
        reader = self._readers.get(delta.index)
        if reader is None:
            reader = self._readers[delta.index] = MessageReader(self.turn.manner)
        last = delta.finish_reason is not None
        return reader.read(delta.pieces, last=last)

    def pieces(self, delta: TextDelta) -> list[ChatChunkChoice]:
        """Further chunks; the last one of a choice has the finish reason."""
        ended = delta.finish_reason is not None
        if self.turn.manner.plain:
            deltas = [ChatDelta(content=UNSET if ended and not delta.text else delta.text)]
        else:
            deltas = [delta_of(part) for part in self.read(delta)]
            if ended or (not deltas and (delta.scores or self.body.return_token_ids)):
                deltas.append(ChatDelta())
        choices = [ChatChunkChoice(index=delta.index, delta=each) for each in deltas]
        if choices and delta.scores:
            choices[0].logprobs = self._logprobs(delta.scores)
        if choices and self.body.return_token_ids:
            choices[0].token_ids = list(delta.token_ids)
        if ended:
            choices[-1].finish_reason = self._reason(delta)
            choices[-1].stop_reason = delta.stop_reason
        return choices

    def _reason(self, delta: TextDelta) -> str | None:
        reader = self._readers.get(delta.index)
        return _finish_reason(delta.finish_reason, called=reader is not None and reader.calls > 0)

    def whole(self, choices: list[Gathered], spent: Spent) -> ChatCompletion:
        """The answer that is no stream, with the best n of all candidates."""
        n = self.body.n or 1
        scored = choices[0].prompt_logprobs
        if len(choices) > n:
            choices = sorted(choices, key=lambda choice: -choice.mean_logprob)[:n]
        listed = []
        for index, gathered in enumerate(choices):
            parts = [Content(gathered.text)] if self.turn.manner.plain else gathered.parts
            message = message_of(parts, front=self.echo)
            choice = ChatChoice(
                index=index,
                message=message,
                logprobs=self._logprobs(gathered.scores),
                finish_reason=_finish_reason(
                    gathered.finish_reason, called=message.tool_calls is not UNSET
                ),
                stop_reason=gathered.stop_reason,
            )
            if self.body.return_token_ids:
                choice.token_ids = gathered.token_ids
            listed.append(choice)
        result = ChatCompletion(
            id=self.turn.job.id,
            created=self.created,
            model=self.body.model or self.turn.job.model.name,
            choices=listed,
            usage=self.usage(spent),
            system_fingerprint=self.fingerprint,
        )
        if self.body.return_token_ids:
            result.prompt_token_ids = list(self.turn.job.prompts[0])
        if self.turn.scores.prompt is not None:
            result.prompt_logprobs = prompt_logprobs(
                scored, self.names, top=self.turn.scores.prompt
            )
        return result

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> ChatLogprobs | None:
        if self.turn.scores.output is None:
            return None
        return chat_logprobs(tokens, self.names, top=self.turn.scores.output)


def _finish_reason(reason: FinishReason | None, *, called: bool) -> str | None:
    """A whole answer with calls in it ends for their sake."""
    return "tool_calls" if called and reason is FinishReason.STOP else reason
