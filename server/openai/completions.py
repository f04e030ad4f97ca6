"""POST /v1/completions (API contract, section 2)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from octavo.engine.errors import InvalidParameter

from ..generation import Job, TextDelta
from ..observe.tally import Tally
from .answers import Completion, CompletionChoice, CompletionLogprobs
from .constraints import answer_grammar, read_obligation
from .desk import Desk, Gathered, Spent, Visit, answer, answer_id, gather, now, size_of
from .logprobs import (
    Entry,
    TokenNames,
    completion_logprobs,
    output_entries,
    prompt_entries,
    prompt_logprobs,
)
from .params import Scores, completion_max_tokens, context_of, model_named, sampling_params
from .prompts import check_choices, check_context, listed_prompts, prompt_ids
from .schema import CompletionRequest
from .sse import DONE, ChunkWriter, stream_answer

if TYPE_CHECKING:
    from ..models import ServedModel


class Completions:
    """The endpoint."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(self, request: Request) -> Response:
        """Continue each prompt n times, as one answer or as a stream."""
        return await self._desk.serve(request, CompletionRequest, self._answer)

    async def _answer(
        self, body: CompletionRequest, raw: Mapping[str, Any], visit: Visit
    ) -> Response:
        tally = visit.tally
        model = model_named(self._desk.models, body.model)
        scores = Scores(
            output=body.logprobs,
            echoed=body.logprobs if body.echo else None,
            prompt=body.prompt_logprobs,
        )
        if body.suffix:
            raise InvalidParameter("suffix: this model cannot insert text.", param="suffix")
        max_tokens = completion_max_tokens(body)
        params = sampling_params(body, model, max_tokens=max_tokens, scores=scores)
        threads = self._desk.threads
        obligation = await threads.run(lambda: read_obligation(raw, model), size=visit.size)
        self._desk.require_accepting()
        context = context_of(model)
        texts, prompts = await threads.run(
            lambda: _prompts(body, model, max_tokens, context), size=visit.size
        )
        visit.permit.weigh(prompts)
        check = self._desk.check_of(model)
        if grammar := await answer_grammar(obligation, model, check):
            params = replace(params, grammar=grammar)
        job = Job(
            id=answer_id("cmpl", body, tally),
            permit=visit.permit,
            model=model,
            prompts=prompts,
            params=params,
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
        )
        form = _Form(body, job, scores, texts, created=now(), fingerprint=self._desk.fingerprint)
        spent = Spent(sum(map(len, prompts)))
        if body.stream:
            events = self._events(form, spent, tally)
            return await stream_answer(
                events, tally, ping_seconds=self._desk.settings.ping_interval
            )
        choices = await gather(job, self._desk.generation.stream(job, tally), spent)
        return await threads.run(lambda: answer(form.whole(choices, spent)), size=size_of(choices))

    async def _events(self, form: _Form, spent: Spent, tally: Tally) -> AsyncGenerator[bytes, None]:
        options = form.body.stream_options
        continuous = bool(options and options.continuous_usage_stats)
        last = bool(options and options.include_usage)
        writer = ChunkWriter(form.constant, with_usage=last or continuous)
        async with aclosing(self._desk.generation.stream(form.job, tally)) as deltas:
            async for delta in deltas:
                spent.count(delta)
                yield writer.chunk(form.piece(delta), spent.usage() if continuous else None)
        if last:
            yield writer.chunk(None, spent.usage())
        yield DONE


@dataclass(slots=True)
class _Form:
    """How this client wants its answer to look. Keeps what a stream must remember."""

    body: CompletionRequest
    job: Job
    scores: Scores
    texts: list[str]  # of the prompts, for the echo
    created: int
    fingerprint: str
    names: TokenNames = field(init=False)
    _only_text: bool = field(init=False)
    _offsets: dict[int, int] = field(default_factory=dict)  # by choice: where its next token begins
    _scored: dict[int, Gathered] = field(default_factory=dict)  # by prompt, where echoed

    def __post_init__(self) -> None:
        self.names = TokenNames(
            self.job.model.tokenizer, as_ids=bool(self.body.return_tokens_as_token_ids)
        )
        # What most streams are, and then their chunks are made in half the time.
        self._only_text = self.scores == Scores() and not self.body.return_token_ids

    @property
    def constant(self) -> dict[str, object]:
        """What is the same in every chunk."""
        return {
            "id": self.job.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.body.model or self.job.model.name,
            "system_fingerprint": self.fingerprint,
        }

    def piece(self, delta: TextDelta) -> CompletionChoice:
        """One chunk of a stream; the first one of a choice has the echo."""
        if self._only_text and delta.index in self._offsets:
            return CompletionChoice(
                index=delta.index,
                text=delta.text,
                finish_reason=delta.finish_reason,
                stop_reason=delta.stop_reason,
            )
        place = delta.index // self.job.params.n
        first = delta.index not in self._offsets
        gathered = Gathered(
            text=delta.text,
            token_ids=list(delta.token_ids),
            scores=list(delta.scores),
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )
        if first and self.scores.echoed is not None:
            # The prompt's scores come with choice 0, which is the first one to come.
            if delta.index % self.job.params.n == 0:
                self._scored[place] = Gathered(prompt_logprobs=delta.prompt_logprobs)
            gathered.prompt_logprobs = self._scored[place].prompt_logprobs
        offset = self._offsets.get(delta.index, 0)
        self._offsets[delta.index] = (
            offset
            + sum(len(token.text) for token in delta.scores)
            + (len(self.texts[place]) if first and self.body.echo else 0)
        )
        return self._choice(delta.index, place, gathered, offset=offset, begins=first)

    def whole(self, choices: list[Gathered], spent: Spent) -> Completion:
        """The answer that is no stream, with the best n of each prompt's candidates."""
        candidates = self.job.params.n
        n = self.body.n or 1
        listed = []
        for place in range(len(self.job.prompts)):
            own = choices[place * candidates : (place + 1) * candidates]
            scored = own[0].prompt_logprobs
            if candidates > n:
                own = sorted(own, key=lambda choice: -choice.mean_logprob)[:n]
            for number, gathered in enumerate(own):
                gathered.prompt_logprobs = scored
                index = place * n + number
                listed.append(self._choice(index, place, gathered, offset=0, begins=True))
        return Completion(
            id=self.job.id,
            created=self.created,
            model=self.body.model or self.job.model.name,
            choices=listed,
            usage=spent.usage(),
            system_fingerprint=self.fingerprint,
        )

    def _choice(
        self, index: int, place: int, gathered: Gathered, *, offset: int, begins: bool
    ) -> CompletionChoice:
        echo = self.texts[place] if begins and self.body.echo else ""
        choice = CompletionChoice(
            index=index,
            text=echo + gathered.text,
            logprobs=self._logprobs(place, gathered, offset, bool(echo)),
            finish_reason=gathered.finish_reason,
            stop_reason=gathered.stop_reason,
        )
        if self.body.return_token_ids:
            choice.token_ids = gathered.token_ids
            choice.prompt_token_ids = list(self.job.prompts[place]) if begins else UNSET
        if self.scores.prompt is not None:
            choice.prompt_logprobs = prompt_logprobs(
                gathered.prompt_logprobs, self.names, top=self.scores.prompt
            )
        return choice

    def _logprobs(
        self, place: int, gathered: Gathered, offset: int, echo: bool
    ) -> CompletionLogprobs | None:
        if self.scores.output is None:
            return None
        entries: list[Entry] = output_entries(gathered.scores)
        if echo:
            text, ids = self.texts[place], self.job.prompts[place]
            scores = gathered.prompt_logprobs
            entries = prompt_entries(self.job.model.tokenizer, text, ids, scores) + entries
        return completion_logprobs(entries, self.names, top=self.scores.output, offset=offset)


def _prompts(
    body: CompletionRequest, model: ServedModel, max_tokens: int, context: int
) -> tuple[list[str], list[Sequence[int]]]:
    """Texts (for the echo) and token ids of all prompts.

    Raises:
        InvalidParameter: there is none, one is empty, or texts and ids are mixed.
        ContextLengthExceeded: one is too long.
    """
    texts: list[str] = []
    prompts: list[Sequence[int]] = []
    listed = listed_prompts(body.prompt, "prompt")
    check_choices(len(listed), max(body.n or 1, body.best_of or 1), "prompt")
    for item in listed:
        ids = prompt_ids(item, body, model, context, "prompt")
        check_context(ids, max_tokens, context, "prompt")
        cut = body.truncate_prompt_tokens is not None
        prompts.append(ids)
        texts.append(item if isinstance(item, str) and not cut else _text_of(ids, model, body))
    return texts, prompts


def _text_of(ids: Sequence[int], model: ServedModel, body: CompletionRequest) -> str:
    if not body.echo:
        return ""
    return model.tokenizer.decode(ids, skip_special_tokens=body.skip_special_tokens is not False)
