"""`FinishedRequest`: what is known of a request once it has ended; read by log and metrics."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.engine.params import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRequest:
    """One HTTP request, all its prompts and choices together. Times in seconds.

    A time is None where the request did not get so far.
    """

    id: str
    route: str  # "/v1/completions"
    status: int  # HTTP status; 499 when the client left
    total_seconds: float  # from arrival to the last byte
    prompt_tokens: int = 0  # each prompt once
    output_tokens: int = 0  # of all choices
    cached_tokens: int = 0  # prompt tokens found in the prefix cache
    longest_output: int = 0  # tokens of the longest choice
    n: int = 1
    max_tokens: int | None = None
    finish_reasons: tuple[FinishReason, ...] = ()  # one a choice
    queue_seconds: float | None = None  # arrival to first step
    first_token_seconds: float | None = None  # arrival to first token
    prefill_seconds: float | None = None  # first step to first token
    decode_seconds: float | None = None  # first to last token
    preemptions: int = 0
    error: str | None = None

    @property
    def inference_seconds(self) -> float | None:
        """First step to last token."""
        if self.prefill_seconds is None:
            return None
        return self.prefill_seconds + (self.decode_seconds or 0.0)

    @property
    def reasons(self) -> str:
        """Finish reasons in one word: "stop", or "length,stop" where choices differ."""
        return ",".join(sorted(set(self.finish_reasons))) or "-"
