"""The mixed streams: one of each kind of request whose state a crash could lose."""

from __future__ import annotations

from dataclasses import dataclass, field

from .answer import Answer

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
_STORY = "Once upon a time there was a little fox who"
_LONG = 160  # tokens: long enough to be hit somewhere
_NUMBERS = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 99999},
    "minItems": 30,
    "maxItems": 40,
}
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 40, "maxLength": 60},
        "words": {
            "type": "array",
            "items": {"enum": ["fox", "wolf", "bear", "owl"]},
            "minItems": 20,
            "maxItems": 25,
        },
    },
    "required": ["name", "words"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "remember", "parameters": _PERSON}}


@dataclass(frozen=True, slots=True)
class Kind:
    """One request that gives the same answer each time."""

    name: str
    path: str
    body: dict[str, object] = field(hash=False)


def _completion(name: str, **body: object) -> Kind:
    start = {"prompt": _STORY, "max_tokens": _LONG, "ignore_eos": True, "stream": True}
    return Kind(name, COMPLETIONS, {**start, "return_token_ids": True, **body})


def _chat(name: str, **body: object) -> Kind:
    start = {"messages": [{"role": "user", "content": "Tell me a story."}], "stream": True}
    return Kind(name, CHAT, {**start, "max_tokens": 400, "return_token_ids": True, **body})


MIX: tuple[Kind, ...] = (
    _completion("greedy", temperature=0),
    _completion("greedy, plain", temperature=0, prompt="The king said", stream=False),
    _completion("seeded", seed=1),
    _completion("seeded, hot", seed=-7, temperature=1.7, top_p=0.95),
    _completion("seeded, top_k", seed=2, top_k=20, min_p=0.02),
    _completion(
        "penalties",
        seed=3,
        frequency_penalty=1.0,
        presence_penalty=0.5,
        repetition_penalty=1.2,
    ),
    _completion("greedy with penalties", temperature=0, frequency_penalty=0.8),
    _completion("bias and bans", seed=4, logit_bias={"300": 3, "301": -100}, bad_words=["wolf"]),
    _completion("stop string", seed=5, stop=["qqqq", "zzz"], min_tokens=20),
    _completion("stop string that hits", seed=6, stop=[" and"], min_tokens=100, max_tokens=400),
    _completion("n = 2", seed=7, n=2),
    _completion("n = 3, plain", seed=8, n=3, stream=False, max_tokens=100),
    _completion("logprobs", seed=9, logprobs=3),
    _chat("chat with logprobs", seed=10, logprobs=True, top_logprobs=2, ignore_eos=True),
    _chat(
        "json_schema",
        seed=11,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": _NUMBERS}},
    ),
    _chat("tool call", seed=12, tools=[_TOOL], tool_choice="required"),
)


@dataclass(frozen=True, slots=True)
class Output:
    """What must be the same each time: per choice its text, tokens and end."""

    choices: tuple[tuple[int, str, tuple[int, ...], str | None], ...]
    completion_tokens: int
    logprobs: tuple[tuple[float | None, ...], ...]

    @classmethod
    def of(cls, answer: Answer) -> Output:
        ordered = sorted(answer.choices.items())
        return cls(
            tuple((i, c.text, tuple(c.token_ids), c.finish_reason) for i, c in ordered),
            answer.completion_tokens or sum(len(c.token_ids) for _, c in ordered),
            tuple(tuple(c.logprobs) for _, c in ordered),
        )

    def same_tokens(self, other: Output) -> bool:
        return self.choices == other.choices and self.completion_tokens == other.completion_tokens
