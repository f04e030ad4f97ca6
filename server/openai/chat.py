"""POST /v1/chat/completions (API contract, section 3)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from octavo.engine.errors import InvalidParameter
from octavo.engine.params import FinishReason

from ..generation import Job, TextDelta
from ..observe.tally import Tally
from ..text.message import Manner, MessageReader, Part
from ..text.tool_parser import Content
from .constraints import answer_grammar, manner_of, read_obligation
from .conversation import encode_messages, message_text, template_for, template_options
from .desk import Desk, Gathered, Spent, answer, answer_id, gather, now, tally_of
from .logprobs import TokenNames, chat_logprobs, prompt_logprobs
from .messages import delta_of, message_of
from .params import (
    Scores,
    chat_max_tokens,
    check_context,
    context_of,
    keep_last,
    model_named,
    sampling_params,
)
from .schema import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatRequest,
    Usage,
)
from .sse import DONE, ChunkWriter, stream_answer, unless_gone

if TYPE_CHECKING:
    from ..models import ServedModel
    from ..text.choice import ScoredToken


class Chat:
    """The endpoint."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, request: Request) -> Response:
        """Answer a conversation n times, as one answer or as a stream."""
        tally = tally_of(request)
        body, raw = await self._desk.read(request, ChatRequest)
        model = model_named(self._desk.models, body.model)
        scores = Scores(output=_top_logprobs(body), prompt=body.prompt_logprobs)
        max_tokens = chat_max_tokens(body, model)
        params = sampling_params(body, model, max_tokens=max_tokens, scores=scores)
        if any(kind != "text" for kind in body.modalities or ()):
            raise InvalidParameter("modalities: only 'text' is offered.", param="modalities")
        trusted = self._desk.settings.trust_request_chat_template
        template = template_for(model, body.chat_template, trusted=trusted)
        obligation = await read_obligation(raw, model, template)
        options = template_options(
            body,
            effort=body.reasoning_effort,
            documents=body.documents,
            tools=obligation.tools,
        )
        rendered = await encode_messages(template, body.messages, raw["messages"], **options)
        prompt = _framed(rendered, body, model)
        self._desk.require_accepting()
        check_context(prompt, max_tokens, context_of(model), "messages")
        manner = manner_of(obligation, model, template, prompt)
        check = self._desk.check_of(model)
        grammar = await answer_grammar(obligation, model, check, manner)
        job = Job(
            id=answer_id("chatcmpl", body, tally),
            model=model,
            prompts=[prompt],
            params=replace(params, grammar=grammar),
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
        )
        form = _Form(body, job, scores, manner, created=now(), fingerprint=self._desk.fingerprint)
        spent = Spent(len(prompt))
        if body.stream:
            events = self._events(form, spent, tally)
            return await stream_answer(
                request, events, tally, ping_seconds=self._desk.settings.ping_interval
            )
        choices = await unless_gone(
            request, gather(job, self._desk.generation.stream(job, tally), spent, form.read)
        )
        return answer(form.whole(choices, spent))

    async def _events(self, form: _Form, spent: Spent, tally: Tally) -> AsyncGenerator[bytes, None]:
        options = form.body.stream_options
        continuous = bool(options and options.continuous_usage_stats)
        last = bool(options and options.include_usage)
        writer = ChunkWriter(form.constant, with_usage=last or continuous)
        begun: set[int] = set()
        async with aclosing(self._desk.generation.stream(form.job, tally)) as deltas:
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
    job: Job
    scores: Scores
    manner: Manner
    created: int
    fingerprint: str
    names: TokenNames = field(init=False)
    _readers: dict[int, MessageReader] = field(default_factory=dict)  # by choice

    def __post_init__(self) -> None:
        self.names = TokenNames(
            self.job.model.tokenizer, as_ids=bool(self.body.return_tokens_as_token_ids)
        )

    @property
    def constant(self) -> dict[str, object]:
        """What is the same in every chunk."""
        return {
            "id": self.job.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.body.model or self.job.model.name,
            "system_fingerprint": self.fingerprint,
        }

    @property
    def once(self) -> dict[str, object]:
        """What only the first chunk of a stream has."""
        if not self.body.return_token_ids:
            return {}
        return {"prompt_token_ids": list(self.job.prompts[0])}

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
        if self.manner.plain:
            return []
        reader = self._readers.get(delta.index)
        if reader is None:
            reader = self._readers[delta.index] = MessageReader(self.manner)
        last = delta.finish_reason is not None
        return reader.read(delta.token_ids, delta.pieces, last=last)

    def pieces(self, delta: TextDelta) -> list[ChatChunkChoice]:
        """Further chunks; the last one of a choice has the finish reason."""
        ended = delta.finish_reason is not None
        if self.manner.plain:
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
            parts = [Content(gathered.text)] if self.manner.plain else gathered.parts
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
            id=self.job.id,
            created=self.created,
            model=self.body.model or self.job.model.name,
            choices=listed,
            usage=self.usage(spent),
            system_fingerprint=self.fingerprint,
        )
        if self.body.return_token_ids:
            result.prompt_token_ids = list(self.job.prompts[0])
        if self.scores.prompt is not None:
            result.prompt_logprobs = prompt_logprobs(scored, self.names, top=self.scores.prompt)
        return result

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> ChatLogprobs | None:
        if self.scores.output is None:
            return None
        return chat_logprobs(tokens, self.names, top=self.scores.output)


def _finish_reason(reason: FinishReason | None, *, called: bool) -> str | None:
    """A whole answer with calls in it ends for their sake."""
    return "tool_calls" if called and reason is FinishReason.STOP else reason


def _top_logprobs(body: ChatRequest) -> int | None:
    """How many alternatives are wanted; None: no log-probabilities at all."""
    if not body.logprobs:
        if body.top_logprobs:
            raise InvalidParameter("top_logprobs needs logprobs.", param="top_logprobs")
        return None
    return body.top_logprobs or 0


def _framed(prompt: list[int], body: ChatRequest, model: ServedModel) -> Sequence[int]:
    """The prompt with what the request wants changed at its ends."""
    first = model.tokenizer.bos_token_id
    if body.add_special_tokens and first is not None and prompt[:1] != [first]:
        prompt = [first, *prompt]
    prompt = keep_last(prompt, body.truncate_prompt_tokens)
    if not prompt:
        raise InvalidParameter("messages: the template makes nothing of them.", param="messages")
    return prompt
