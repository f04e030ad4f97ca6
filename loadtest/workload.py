"""What is asked of a server: requests with exact prompt lengths, made from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests of one kind. Prompts are token ids, so that their lengths are exact anywhere.

    `shared_prefix` leading tokens are the same in every prompt; the rest differ. Ids are drawn
    from first_token_id .. last_token_id, which must be ordinary tokens of the served model.
    """

    requests: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    shared_prefix: int = 0
    stream: bool = True
    temperature: float = 0.0
    seed: int = 0
    first_token_id: int = 300
    last_token_id: int = 3900

    def bodies(self, model: str) -> Iterator[dict[str, object]]:
        """The JSON bodies for /v1/completions, in order. The same seed gives the same bodies."""
        draw = random.Random(self.seed)

        def tokens(count: int) -> list[int]:
            return [draw.randint(self.first_token_id, self.last_token_id) for _ in range(count)]

        prefix = tokens(self.shared_prefix)
        for _ in range(self.requests):
            body: dict[str, object] = {
                "model": model,
                "prompt": prefix + tokens(self.prompt_tokens - self.shared_prefix),
                "max_tokens": self.output_tokens,
                "ignore_eos": True,
                "temperature": self.temperature,
                "stream": self.stream,
            }
            if self.stream:
                body["stream_options"] = {"include_usage": True}
            yield body
