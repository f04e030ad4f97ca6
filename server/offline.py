"""`LLM`: the engine in your own process, prompts in and texts out. No HTTP.

llm = LLM()                                   # the bundled model
llm.generate(["Once upon a time"], SamplingParams(max_tokens=64))
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, cast

from octavo.engine.assembly import build_engine
from octavo.engine.errors import (
    ContextLengthExceeded,
    InvalidParameter,
    SequenceFailed,
)
from octavo.engine.params import SEED_BITS, FinishReason, Request, SamplingParams
from octavo.engine.step import Delta, StepStats, TokenLogprobs

from .models import ServedModel, find_model
from .settings import BUNDLED, Settings
from .text.detokenizer import Detokenizer
from .text.stop import StopScanner

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
        if not params.bad_words:
            return params
        encode = self._model.tokenizer.encode
        spellings = [form for word in params.bad_words for form in (word, " " + word.lstrip())]
        ids = {tuple(encode(form, add_special_tokens=False)) for form in spellings}
        return replace(params, bad_words_ids=(*params.bad_words_ids, *sorted(ids - {()})))

    def _refuse_what_cannot_be_served(
        self, prompt: tuple[int, ...], params: SamplingParams
    ) -> None:
        if not prompt:
            raise InvalidParameter("A prompt needs one token at least.", param="prompt")
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < self._capacity.vocab_size:
                raise InvalidParameter(
                    f"Token id {token} is outside the vocabulary (0 to "
                    f"{self._capacity.vocab_size - 1}).",
                    param="prompt",
                )
        total = len(prompt) + (params.max_tokens or 0)
        if total > self.max_model_len or len(prompt) == self.max_model_len:
            raise ContextLengthExceeded(
                f"The prompt has {len(prompt)} tokens and max_tokens is {params.max_tokens}; "
                f"the context is {self.max_model_len} tokens.",
                param="prompt",
            )


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
        self._choices = [_Choice.begin(model, params) for _ in range(params.n)]

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
        return all(choice.finish_reason is not None for choice in self._choices)

    def take(self, delta: Delta) -> bool:
        """Take one delta in; True when its choice has ended here but not in the engine."""
        if delta.error is not None:
            raise SequenceFailed(delta.error)
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


@dataclass(slots=True)
class _Choice:
    detokenizer: Detokenizer
    scanner: StopScanner
    keep_stop_token: bool
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    score: float | None = None

    @classmethod
    def begin(cls, model: ServedModel, params: SamplingParams) -> _Choice:
        return cls(
            Detokenizer(model.tokenizer, skip_special_tokens=params.skip_special_tokens),
            StopScanner(params.stop, include=params.include_stop_str_in_output),
            keep_stop_token=params.include_stop_str_in_output or not params.skip_special_tokens,
        )

    def take(self, delta: Delta) -> bool:
        if self.finish_reason is not None:
            return False
        self.logprobs.extend(delta.logprobs)
        self.score = delta.score
        for position, token in enumerate(delta.token_ids, 1):
            self.token_ids.append(token)
            silent = (
                position == len(delta.token_ids)
                and delta.finish_reason is FinishReason.STOP
                and not self.keep_stop_token
            )
            self.text += "" if silent else self.scanner.feed(self.detokenizer.feed(token))
            if self.scanner.matched is not None:
                del self.logprobs[len(self.token_ids) :]
                self.finish_reason = FinishReason.STOP
                self.stop_reason = self.scanner.matched
                return not delta.last
        if delta.last:
            self.text += self.scanner.feed(self.detokenizer.finish()) + self.scanner.finish()
            self.finish_reason = delta.finish_reason
            self.stop_reason = delta.stop_token_id
            if self.scanner.matched is not None:
                self.finish_reason, self.stop_reason = FinishReason.STOP, self.scanner.matched
        return False

    def output(self, index: int) -> CompletionOutput:
        assert self.finish_reason is not None
        return CompletionOutput(
            index=index,
            text=self.text,
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            score=self.score,
        )
