"""What may be asked of the engine: `SamplingParams` or `PoolingParams`, and the `Request` that
carries them.

All are frozen and already valid once built: the parameters refuse bad values with
`InvalidParameter`, so that a request which waits in a queue can no longer be wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from .errors import InvalidParameter

MAX_N = 128
MAX_TOP_LOGPROBS = 64
SEED_BITS = 64


class FinishReason(StrEnum):
    """Why a sequence ended; the values are the wire's words where the wire has one."""

    STOP = "stop"  # end-of-sequence id, stop id or stop string
    LENGTH = "length"  # max_tokens, or the end of the context
    ABORT = "abort"  # the client left, or the front end gave the request up
    ERROR = "error"  # computing this sequence failed


class GrammarKind(StrEnum):
    """How the text of a `GrammarSpec` is to be read."""

    JSON_SCHEMA = "json_schema"  # a JSON schema, properties in the order in which they are to come
    REGEX = "regex"  # a regular expression that the whole answer matches
    CHOICE = "choice"  # a JSON list of strings: the answer is one of them
    LARK = "lark"  # llguidance's dialect of Lark; control tokens are written <[id]>
    GBNF = "gbnf"  # llama.cpp's dialect; the front end's check turns it into LARK


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an answer must look like. Values that have passed `server/text/grammar_check` compile.

    Between the parts of a JSON value at most one space, or one line break and its indentation, is
    allowed: a weak model that loves white space still comes to an end.
    """

    kind: GrammarKind
    text: str
    lead: str = ""  # a grammar of kind LARK around it, in which it is `@answer`

    @property
    def source(self) -> str:
        """The same in the JSON form that llguidance compiles.

        Raises:
            ValueError: the text is not of its kind, or the kind is GBNF.
        """
        part: dict[str, object]
        match self.kind:
            case GrammarKind.JSON_SCHEMA:
                schema = json.loads(self.text)
                # The schema `false` matches nothing, `true` anything; both have an object's form.
                if isinstance(schema, bool):
                    schema = {} if schema else {"enum": []}
                part = {"json_schema": {**schema, "x-guidance": dict(JSON_STYLE)}}
            case GrammarKind.REGEX:
                part = {"lark_grammar": f"start: /{_lark_regex(self.text)}/\n"}
            case GrammarKind.CHOICE:
                words = map(json.dumps, json.loads(self.text))
                part = {"lark_grammar": f"start: {' | '.join(words)}\n"}
            case GrammarKind.LARK:
                part = {"lark_grammar": self.text}
            case GrammarKind.GBNF:
                raise ValueError("a GBNF grammar must be turned into Lark first")
        grammars: list[dict[str, object]] = [part]
        if self.lead:
            grammars = [{"lark_grammar": self.lead}, {"name": "answer", **part}]
        return json.dumps({"grammars": grammars}, ensure_ascii=False)


JSON_STYLE: Mapping[str, str] = MappingProxyType({"whitespace_pattern": r" |\n {0,32}"})


def _lark_regex(pattern: str) -> str:
    """`pattern` as it stands between slashes: those inside, and line breaks, are escaped."""
    escaped, out = False, []
    for character in pattern:
        if character == "/" and not escaped:
            out.append("\\")
        if character == "\n":
            out.append("n" if escaped else "\\n")
        else:
            out.append(character)
        escaped = character == "\\" and not escaped
    return "".join(out)


def _require(ok: bool, param: str, value: object, limit: str) -> None:
    if not ok:
        raise InvalidParameter(f"{param} must be {limit}, but it is {value!r}.", param=param)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are chosen. Defaults are the OpenAI completion defaults.

    Raises:
        InvalidParameter: a value is outside the limits stated beside its field.
    """

    n: int = 1  # choices, 1..128
    max_tokens: int | None = 16  # generated tokens at most, >= 0; None: to the context's end
    min_tokens: int = 0  # 0..max_tokens: end-of-sequence and stop ids are masked until reached
    temperature: float = 1.0  # 0..2; 0 is greedy
    top_p: float = 1.0  # 0..1
    top_k: int = 0  # >= -1; 0 and -1 are off
    min_p: float = 0.0  # 0..1
    presence_penalty: float = 0.0  # -2..2, over generated tokens
    frequency_penalty: float = 0.0  # -2..2, over generated tokens
    repetition_penalty: float = 1.0  # > 0, over prompt and generated tokens
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> -100..100
    allowed_token_ids: tuple[int, ...] | None = None  # nothing else may be sampled
    bad_words_ids: tuple[tuple[int, ...], ...] = ()  # token sequences that may not be completed
    seed: int | None = None  # any int64; None: drawn by the front end
    logprobs: int | None = None  # None: none; k: the chosen token and the k likeliest
    prompt_logprobs: int | None = None  # the same, for each prompt token
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    beam_width: int = 0  # > 0: beam search, n best of it are returned
    length_penalty: float = 1.0  # beam score = sum(log p) / length ** length_penalty
    grammar: GrammarSpec | None = None  # what the answer must look like

    # Text. The engine ignores these; `server/generation` reads them.
    stop: tuple[str, ...] = ()
    bad_words: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        _require(1 <= self.n <= MAX_N, "n", self.n, f"between 1 and {MAX_N}")
        if self.max_tokens is not None:
            _require(self.max_tokens >= 0, "max_tokens", self.max_tokens, "0 or more")
            _require(
                self.min_tokens <= self.max_tokens,
                "min_tokens",
                self.min_tokens,
                f"at most max_tokens ({self.max_tokens})",
            )
        _require(self.min_tokens >= 0, "min_tokens", self.min_tokens, "0 or more")
        for name, low, high in (
            ("temperature", 0.0, 2.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # the sentence alone would take longer than the question
                _require(False, name, value, f"between {low:g} and {high:g}")
        _require(self.top_k >= -1, "top_k", self.top_k, "-1 (off), 0 (off) or more")
        # Logits are multiplied or divided by it, in float32.
        _require(
            1e-6 <= self.repetition_penalty <= 1e6,
            "repetition_penalty",
            self.repetition_penalty,
            "between 1e-6 and 1e6",
        )
        for token, bias in self.logit_bias.items():
            _require(token >= 0, "logit_bias", token, "keyed by token ids of 0 or more")
            _require(-100 <= bias <= 100, "logit_bias", bias, "between -100 and 100")
        if self.allowed_token_ids is not None:
            _require(len(self.allowed_token_ids) > 0, "allowed_token_ids", (), "not empty")
        if self.seed is not None:
            _require(
                -(1 << (SEED_BITS - 1)) <= self.seed < 1 << (SEED_BITS - 1),
                "seed",
                self.seed,
                "a 64-bit signed integer",
            )
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _require(
                    0 <= value <= MAX_TOP_LOGPROBS, name, value, f"between 0 and {MAX_TOP_LOGPROBS}"
                )
        _require(
            0 <= self.beam_width <= MAX_N, "beam_width", self.beam_width, f"between 0 and {MAX_N}"
        )
        _require(
            self.beam_width == 0 or self.n <= self.beam_width,
            "n",
            self.n,
            f"at most the beam width ({self.beam_width})",
        )
        _require(
            self.grammar is None or self.beam_width == 0,
            "use_beam_search",
            True,
            "off where the answer's form is constrained",
        )
        # A power of the length with a larger exponent is no float any more.
        _require(
            -16 <= self.length_penalty <= 16,
            "length_penalty",
            self.length_penalty,
            "between -16 and 16",
        )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1


class PoolingKind(StrEnum):
    """How the hidden states of a prompt become one vector; the values are the wire's words."""

    MEAN = "mean"  # of all positions
    LAST = "last"  # that of the last position, which has seen all others


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """How a prompt becomes an embedding: pooled, then cut, then normalised.

    Raises:
        InvalidParameter: `dimensions` is less than 1.
    """

    kind: PoolingKind = PoolingKind.MEAN
    dimensions: int | None = None  # the first so many numbers are kept; None: all
    normalize: bool = True  # to an L2 norm of 1

    def __post_init__(self) -> None:
        if self.dimensions is not None:
            _require(self.dimensions >= 1, "dimensions", self.dimensions, "1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """What one choice of a resumed request has already sent to its client."""

    token_ids: tuple[int, ...] = ()
    finished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to be continued, as the engine sees it. Already valid: it can wait, not be wrong.

    With `pooling` it is embedded instead: of `sampling` only n is looked at then, which must be 1,
    and the only Delta carries the embedding.

    `seed` is concrete (drawn by the front end when the client gave none); choice i samples with
    `choice_seed(seed, i)`. A prompt's place in a list of prompts never enters.
    """

    id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    pooling: PoolingParams | None = None
    seed: int
    arrival: float  # time.monotonic() seconds, comparable between processes of one machine
    priority: int = 0  # lower runs first, under the priority policy
    adapter: str | None = None
    tenant: str = ""
    deadline: float | None = None  # time.monotonic() seconds
    cache_salt: str = ""  # separates prefix-cache entries
    emitted: tuple[Emitted, ...] = ()  # per choice; empty unless resumed after a crash


def choice_seed(seed: int, index: int) -> int:
    """The 64-bit seed of choice `index`: choice 0 keeps the request's seed.

    The others go through the finaliser of SplitMix64 (Steele, Lea, Flood 2014), so that
    neighbouring seeds and indexes give unrelated streams.
    """
    mask = (1 << SEED_BITS) - 1
    if index == 0:
        return seed & mask
    x = (seed + index * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)
