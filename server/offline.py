"""`LLM`: the engine in your own process, prompts in and texts out. No HTTP.

llm = LLM()                                   # the bundled model
llm.generate(["Once upon a time"], SamplingParams(max_tokens=64))
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, cast

from octavo.engine.assembly import build_engine
from octavo.engine.errors import InvalidParameter
from octavo.engine.params import SEED_BITS, FinishReason, Request, SamplingParams
from octavo.engine.step import Delta, StepStats, TokenLogprobs, failure_of

from .models import ServedModel, find_model
from .openai.params import bad_words_ids
from .openai.prompts import check_context, check_ids
from .settings import BUNDLED, Settings
from .text.choice import ChoiceText

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One finished choice."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]  # one per token, where asked for
    finish_reason: FinishReason
    stop_reason: str | int | None = None  # the stop string or token id that ended it
    score: float | None = None  # beam search only


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """One prompt and its n choices, in order."""

    prompt: str | None  # None where token ids were given
    prompt_token_ids: tuple[int, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...]  # of all prompt tokens but the first, where asked
    outputs: tuple[CompletionOutput, ...]
    cached_tokens: int


class LLM:
    """A model ready to generate. Close it, or use it as a context manager, to free its memory.

    `settings` are those of the command line, spelled as Python: `dtype="float32"`,
    `max_model_len=4096`, `block_size=32` ...

    Raises:
        ConfigError: the model cannot be found or read, or does not fit.
    """

    def __init__(
        self,
        model: str = BUNDLED,
        *,
        progress: Callable[[str, int, int], None] | None = None,
        **settings: Any,
    ) -> None:
        chosen = Settings(model=model, **settings)
        report = progress or (lambda stage, done, total: None)
        folder = find_model(chosen, report)
        self._model = ServedModel.load(folder, chosen)
        self._engine, self._capacity = build_engine(chosen.engine_config(folder), report)

    @property
    def max_model_len(self) -> int:
        """Prompt and output together may have this many tokens."""
        return self._capacity.max_model_len

    @property
    def stats(self) -> StepStats:
        """What the engine has done so far: preemptions, swaps, prefix hits ..."""
        return self._engine.stats()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt (a text, or token ids used as they are); answers in their order.

        One `SamplingParams` serves all prompts, or there is one for each; None means the
        checkpoint's own defaults. `progress` is called as progress(done, total).

        Raises:
            RequestError: a prompt or its parameters cannot be served; nothing was generated.
            SequenceFailed: the engine could not compute one of them.
        """
        one = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))
        listed: list[Prompt] = list(cast(Sequence[Prompt], [prompts] if one else prompts))
        texts = [prompt if isinstance(prompt, str) else None for prompt in listed]
        ids = [
            tuple(self._model.tokenizer.encode(p, parse_special=True))
            if isinstance(p, str)
            else tuple(p)
            for p in listed
        ]
        return self._run(texts, ids, self._params_for(len(ids), sampling_params), progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several. `template_options` go to the chat template.

        Raises what `generate` does, and InvalidParameter where the model has no chat template.
        """
        if self._model.template is None:
            raise InvalidParameter(
                f"{self._model.name} has no chat template; use generate, or set chat_template.",
                param="messages",
            )
        one = bool(messages) and isinstance(messages[0], Mapping)
        conversations: list[Any] = [messages] if one else list(messages)
        encode = self._model.template.encode
        ids = [tuple(encode(talk, **template_options)) for talk in conversations]
        texts: list[str | None] = [None] * len(ids)
        return self._run(texts, ids, self._params_for(len(ids), sampling_params), progress)

    def close(self) -> None:
        """Free the model and the KV cache."""
        self._engine.stop()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _params_for(
        self, count: int, given: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if given is None:
            return [SamplingParams(**self._model.sampling_defaults)] * count  # type: ignore[arg-type]
        if isinstance(given, SamplingParams):
            return [given] * count
        if len(given) != count:
            raise InvalidParameter(
                f"sampling_params must be one, or as many as there are prompts ({count}), "
                f"not {len(given)}.",
                param="sampling_params",
            )
        return list(given)

    def _run(
        self,
        texts: list[str | None],
        prompts: list[tuple[int, ...]],
        params: list[SamplingParams],
        progress: Callable[[int, int], None] | None,
    ) -> list[RequestOutput]:
        answers = [
            _Answer(str(number), text, ids, self._with_bad_words(sampling), self._model)
            for number, (text, ids, sampling) in enumerate(zip(texts, prompts, params, strict=True))
        ]
        for answer in answers:
            self._refuse_what_cannot_be_served(answer.prompt_token_ids, answer.params)
        by_id = {answer.id: answer for answer in answers}
        try:
            for answer in answers:
                self._engine.add(answer.request())
            while not self._engine.idle:
                for delta in self._engine.step().deltas:
                    answer = by_id[delta.request_id]
                    if answer.take(delta):
                        self._engine.abort(delta.request_id, delta.index)
                    if answer.complete:
                        del by_id[answer.id]
                        if progress is not None:
                            progress(len(answers) - len(by_id), len(answers))
        finally:  # an error or Ctrl-C leaves nothing running behind
            for request_id in by_id:
                self._engine.abort(request_id)
        return [answer.output() for answer in answers]

    def _with_bad_words(self, params: SamplingParams) -> SamplingParams:
        ids = bad_words_ids(params.bad_words, self._model)
        return replace(params, bad_words_ids=(*params.bad_words_ids, *ids)) if ids else params

    def _refuse_what_cannot_be_served(
        self, prompt: tuple[int, ...], params: SamplingParams
    ) -> None:
        if not prompt:
            raise InvalidParameter("A prompt needs one token at least.", param="prompt")
        check_ids(prompt, self._capacity.vocab_size, "prompt")
        check_context(prompt, params.max_tokens, self.max_model_len, "prompt")


class _Answer:
    """One request under way: gathers its choices' tokens and text."""

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: tuple[int, ...],
        params: SamplingParams,
        model: ServedModel,
    ) -> None:
        self.id = request_id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self._prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        self._cached_tokens = 0
        self._choices = [_Choice(model, params) for _ in range(params.n)]

    def request(self) -> Request:
        seed = self.params.seed
        return Request(
            id=self.id,
            prompt_token_ids=self.prompt_token_ids,
            sampling=self.params,
            seed=secrets.randbits(SEED_BITS) if seed is None else seed,
            arrival=time.monotonic(),
        )

    @property
    def complete(self) -> bool:
        return all(choice.finished for choice in self._choices)

    def take(self, delta: Delta) -> bool:
        """Take one delta in; True when its choice has ended here but not in the engine."""
        if delta.error is not None:
            raise failure_of(delta.error)
        self._prompt_logprobs += delta.prompt_logprobs
        if delta.cached_tokens is not None and delta.index == 0:
            self._cached_tokens = delta.cached_tokens
        return self._choices[delta.index].take(delta)

    def output(self) -> RequestOutput:
        return RequestOutput(
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=self._prompt_logprobs,
            outputs=tuple(choice.output(i) for i, choice in enumerate(self._choices)),
            cached_tokens=self._cached_tokens,
        )


class _Choice:
    """One choice's text and tokens, as far as they have come."""

    def __init__(self, model: ServedModel, params: SamplingParams) -> None:
        self._text = ChoiceText(model.tokenizer, params)
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._score: float | None = None

    @property
    def finished(self) -> bool:
        return self._text.finished

    def take(self, delta: Delta) -> bool:
        """Take one delta in; True when the choice has ended here but not in the engine."""
        if self.finished:
            return False  # the engine had computed it before it heard of the end
        pieces, _, used = self._text.take(delta)
        self._pieces += [text for _, text in pieces]
        self._token_ids += delta.token_ids[:used]
        self._logprobs += delta.logprobs[:used]
        self._score = delta.score
        return self._text.finish_reason is not None and not delta.last

    def output(self, index: int) -> CompletionOutput:
        assert self._text.finish_reason is not None
        return CompletionOutput(
            index=index,
            text="".join(self._pieces),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            finish_reason=self._text.finish_reason,
            stop_reason=self._text.stop_reason,
            score=self._score,
        )
