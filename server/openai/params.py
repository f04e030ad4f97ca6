"""From a request's fields to `SamplingParams`, with the limits only the model can know.

Everything a client may have got wrong is refused here or in `schema`, before the engine hears of
it (API contract, sections 2 and 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo.engine.errors import EngineDead, InvalidParameter
from octavo.engine.params import SamplingParams

from ..models import ModelPool, ServedModel
from .errors import UnknownModel
from .prompts import check_ids
from .schema import ChatRequest, CompletionRequest, GenerationRequest

MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
MAX_STOP_IDS = 1024
MAX_BAD_WORDS = 256
MAX_BAD_WORD_CHARACTERS = 256
MAX_BIASES = 4096
_BIAS_LIMIT = 100.0
_UNOFFERED = ("functions", "function_call", "audio")


def model_named(models: ModelPool, name: str | None) -> ServedModel:
    """Raises UnknownModel: no model is served under this name."""
    model = models.get(name)
    if model is None:
        served = ", ".join(served.name for served in models)
        raise UnknownModel(f"There is no model {name!r} here; served: {served}.", param="model")
    return model


def context_of(model: ServedModel) -> int:
    """Tokens of context. Raises EngineDead: the engine has not decided yet."""
    if model.max_model_len is None:
        raise EngineDead("The engine is still loading; try again in a moment.")
    return model.max_model_len


def refuse_unoffered(request: GenerationRequest) -> None:
    """Raises InvalidParameter for what this server cannot do, rather than ignoring it."""
    for name in _UNOFFERED:
        if getattr(request, name, None) is not None:
            raise InvalidParameter(f"{name} is not offered by this server.", param=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Which log-probabilities the client wants to see; None: none."""

    output: int | None = None  # of each generated token, with as many alternatives
    echoed: int | None = None  # of each prompt token, in the echoed text
    prompt: int | None = None  # of each prompt token, in a list of its own


def sampling_params(
    request: GenerationRequest, model: ServedModel, *, max_tokens: int | None, scores: Scores
) -> SamplingParams:
    """The engine's parameters; `n` counts all candidates where `best_of` asks for more.

    Raises:
        InvalidParameter: a value is out of its limits, or does not go with another one.
    """
    refuse_unoffered(request)
    _check_stream(request)
    vocabulary = model.config.vocab_size
    for name, most in (("stop_token_ids", MAX_STOP_IDS), ("allowed_token_ids", vocabulary)):
        ids = getattr(request, name) or ()
        check_ids(ids, vocabulary, name)
        if len(ids) > most:
            raise InvalidParameter(f"{name}: at most {most} ids.", param=name)
    candidates = _candidates(request)
    given = {
        name: getattr(request, name) for name in _SAME_NAME if getattr(request, name) is not None
    }
    if request.use_beam_search:
        _check_beam_search(request, scores)
        given |= {"n": request.n or 1, "beam_width": candidates}
        given["length_penalty"] = 1.0 if request.length_penalty is None else request.length_penalty
    elif request.length_penalty is not None and request.length_penalty != 1.0:
        raise InvalidParameter("length_penalty needs use_beam_search.", param="length_penalty")
    else:
        given["n"] = candidates
    ranks = not request.use_beam_search and candidates > (request.n or 1)
    asked = [k for k in (scores.echoed, scores.prompt) if k is not None]
    return SamplingParams(
        **{
            **model.sampling_defaults,
            **given,
            "max_tokens": max_tokens,
            "logit_bias": _logit_bias(request.logit_bias, vocabulary),
            "stop": _stops(request.stop),
            "stop_token_ids": tuple(request.stop_token_ids or ()),
            "allowed_token_ids": _optional_tuple(request.allowed_token_ids),
            "bad_words": tuple(request.bad_words or ()),
            "bad_words_ids": bad_words_ids(request.bad_words, model),
            "logprobs": 0 if scores.output is None and ranks else scores.output,
            "prompt_logprobs": max(asked, default=None),
        }
    )


_SAME_NAME = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "min_tokens", "ignore_eos"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("include_stop_str_in_output", "skip_special_tokens"),
)


def completion_max_tokens(request: CompletionRequest) -> int:
    return 16 if request.max_tokens is None else request.max_tokens


def chat_max_tokens(request: ChatRequest, model: ServedModel) -> int | None:
    """None: up to the end of the context."""
    newer = request.max_completion_tokens
    given = request.max_tokens if newer is None else newer
    default = model.sampling_defaults.get("max_tokens")
    return int(default) if given is None and default is not None else given


def _check_stream(request: GenerationRequest) -> None:
    if not request.stream:
        if request.stream_options is not None:
            raise InvalidParameter("stream_options needs stream.", param="stream_options")
        return
    if request.prompt_logprobs is not None:
        raise InvalidParameter("prompt_logprobs does not go with stream.", param="prompt_logprobs")
    if request.use_beam_search:
        raise InvalidParameter("use_beam_search does not go with stream.", param="use_beam_search")
    if _candidates(request) > (request.n or 1):
        raise InvalidParameter("best_of above n does not go with stream.", param="best_of")


def _candidates(request: GenerationRequest) -> int:
    n = request.n or 1
    if request.best_of is None:
        return n
    if request.best_of < n:
        raise InvalidParameter(
            f"best_of must be at least n ({n}), but it is {request.best_of}.", param="best_of"
        )
    return request.best_of


def _check_beam_search(request: GenerationRequest, scores: Scores) -> None:
    if scores.output is not None:
        raise InvalidParameter("logprobs do not go with use_beam_search.", param="logprobs")


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if "" in stops:
        raise InvalidParameter("stop: an empty string stops nothing.", param="stop")
    if len(stops) > MAX_STOPS:
        raise InvalidParameter(f"stop: at most {MAX_STOPS} strings.", param="stop")
    if any(len(text) > MAX_STOP_CHARACTERS for text in stops):
        raise InvalidParameter(
            f"stop: a string may have at most {MAX_STOP_CHARACTERS} characters.", param="stop"
        )
    return stops


def _logit_bias(bias: Mapping[str, float] | None, vocabulary: int) -> dict[int, float]:
    parsed = {}
    if len(bias or ()) > MAX_BIASES:
        raise InvalidParameter(f"logit_bias: at most {MAX_BIASES} entries.", param="logit_bias")
    for key, value in (bias or {}).items():
        if not (key.isascii() and key.isdecimal() and len(key) < 12):
            raise InvalidParameter(
                f"logit_bias: the key {key[:40]!r} is not a token id.", param="logit_bias"
            )
        if not -_BIAS_LIMIT <= value <= _BIAS_LIMIT:
            raise InvalidParameter(
                f"logit_bias: {value!r} is not between -100 and 100.", param="logit_bias"
            )
        if int(key) in parsed:
            raise InvalidParameter(
                f"logit_bias: the token {int(key)} stands there twice.", param="logit_bias"
            )
        parsed[int(key)] = value
    check_ids(tuple(parsed), vocabulary, "logit_bias")
    return parsed


def bad_words_ids(words: Sequence[str] | None, model: ServedModel) -> tuple[tuple[int, ...], ...]:
    """Each word's tokens, at a text's beginning and after a space."""
    found: dict[tuple[int, ...], None] = {}
    words = words or ()
    if len(words) > MAX_BAD_WORDS or any(len(word) > MAX_BAD_WORD_CHARACTERS for word in words):
        raise InvalidParameter(
            f"bad_words: at most {MAX_BAD_WORDS}, of at most {MAX_BAD_WORD_CHARACTERS} characters.",
            param="bad_words",
        )
    for word in words:
        if not word.strip():
            raise InvalidParameter("bad_words: an empty word cannot be avoided.", param="bad_words")
        for text in (word.lstrip(), " " + word.lstrip()):
            found[tuple(model.tokenizer.encode(text, add_special_tokens=False))] = None
    return tuple(found)


def _optional_tuple(ids: list[int] | None) -> tuple[int, ...] | None:
    return None if ids is None else tuple(ids)
