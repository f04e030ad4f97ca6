"""What is asked of a server: requests made from a seed, and when they are sent."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .lengths import Lengths, fixed

Form = Literal["ids", "text", "chat"]
_PROMPT, _OUTPUT = fixed(128), fixed(64)

# One token each for nearly every tokenizer. Servers that take no ids get these, and
# `calibrate.py` finds out how many words make a token for theirs.
WORDS = (
    "the of and to in is you that it he was for on are as with his they at be this have from or "
    "one had by but not what all were we when your can said there use an each which she do how "
    "their if will up other about out many then them these so some her would make like him into "
    "time has look two more write go see number no way could people my than first water been who"
).split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How requests are put to one server.

    `form`: prompts as token ids (exact everywhere), as text, or as a chat. Ids are drawn from
    first_token_id .. last_token_id, which must be ordinary tokens of the served model. A text of
    n tokens has (n - frame_tokens) / tokens_per_word words.
    """

    model: str
    form: Form = "ids"
    ignore_eos: bool = True
    temperature: float = 0.0
    first_token_id: int = 300
    last_token_id: int = 3900
    tokens_per_word: float = 1.0
    frame_tokens: float = 0.0
    extra: dict[str, object] = field(default_factory=dict)  # more fields of the body

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.form == "chat" else "/v1/completions"

    def pieces(self, count: int, draw: random.Random) -> list[int] | list[str]:
        """`count` random tokens as ids, or about as many as words."""
        if self.form == "ids":
            first, last = self.first_token_id, self.last_token_id
            return [draw.randint(first, last) for _ in range(count)]
        return draw.choices(WORDS, k=round(count / self.tokens_per_word))

    def body(
        self, prompt: list[int] | list[str], *, output_tokens: int, stream: bool
    ) -> dict[str, object]:
        """The JSON body of one request."""
        body: dict[str, object] = {"model": self.model, "stream": stream}
        if self.form == "ids":
            body["prompt"] = prompt
        elif self.form == "text":
            body["prompt"] = " ".join(map(str, prompt))
        else:
            body["messages"] = [{"role": "user", "content": " ".join(map(str, prompt))}]
        body["max_tokens"] = output_tokens
        body["temperature"] = self.temperature
        if self.ignore_eos:
            body["ignore_eos"] = True
        if stream:
            body["stream_options"] = {"include_usage": True}
        return body | self.extra


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests of one kind.

    A closed loop keeps `concurrency` requests under way, each client sending its next when its
    last has ended. With a `rate`, requests per second come as they come to a public server, as a
    Poisson process, however many are under way. `shared_prefix` leading tokens are common to
    requests of the same group, of which there are `prefixes`.
    """

    name: str = "requests"
    requests: int
    prompt_tokens: Lengths = _PROMPT
    output_tokens: Lengths = _OUTPUT
    concurrency: int = 8
    rate: float | None = None
    shared_prefix: int = 0
    prefixes: int = 1
    stream: bool = True
    seed: int = 0
    after_pieces: int = 0  # sent when the others' answers have come in so many pieces

    def bodies(self, asking: Asking) -> Iterator[dict[str, object]]:
        """The JSON bodies, in order. The same seed gives the same bodies."""
        draw = random.Random(self.seed)
        frame = round(asking.frame_tokens)
        prefixes = [asking.pieces(self.shared_prefix, draw) for _ in range(self.prefixes)]
        for _ in range(self.requests):
            prefix = draw.choice(prefixes)
            own = max(1, self.prompt_tokens.draw(draw) - frame - self.shared_prefix)
            prompt = [*prefix, *asking.pieces(own, draw)]
            output = self.output_tokens.draw(draw)
            yield asking.body(prompt, output_tokens=output, stream=self.stream)

    def arrivals(self) -> list[float]:
        """Seconds from the start at which each request of an open loop is due."""
        assert self.rate is not None
        draw, now, due = random.Random(self.seed + 1), 0.0, []
        for _ in range(self.requests):
            due.append(now)
            now += draw.expovariate(self.rate)
        return due
