"""From the bytes of an answer to its figures: server-sent events, usage, errors.

The format of the events is WHATWG's (lines end with LF, CR LF or CR; a blank line ends an event),
what they hold is OpenAI's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .wire import Transcript


@dataclass(slots=True, kw_only=True)
class Exchange:
    """What happened to one request. Times in seconds of time.perf_counter()."""

    sent: float
    status: int = 0
    arrivals: list[float] = field(default_factory=list)  # one per event that carried text
    ended: float = 0.0
    output_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None

    @property
    def good(self) -> bool:
        return self.error is None and self.status == 200 and bool(self.arrivals)

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.sent

    @property
    def tpot(self) -> float | None:
        """Mean time per output token after the first; None where there was but one."""
        if self.output_tokens < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


def read(transcript: Transcript) -> Exchange:
    """Understand an answer. What is wrong with it is told in `error`, never raised."""
    exchange = Exchange(
        sent=transcript.sent,
        status=transcript.status,
        ended=transcript.ended,
        error=transcript.error,
    )
    if exchange.error is not None:
        return exchange
    try:
        if transcript.streamed:
            _read_stream(transcript, exchange)
        else:
            _read_answer(json.loads(transcript.body), transcript.ended, exchange)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        exchange.error = f"not an answer of this API: {type(error).__name__}: {error}"
    if exchange.error is None and exchange.status != 200:
        exchange.error = f"status {exchange.status}"
    return exchange


def events(pieces: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The data of each event, with the arrival time of the piece that completed it."""
    rest = b""
    for arrived, piece in pieces:
        text = rest + piece
        if b"\r" in text:
            held = text.endswith(b"\r")  # its LF may be in the next piece
            text = text[: -1 if held else None].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            *whole, rest = text.split(b"\n\n")
            rest += b"\r" if held else b""
        else:
            *whole, rest = text.split(b"\n\n")
        for event in whole:
            lines = [line[5:].removeprefix(b" ") for line in _data_lines(event)]
            if lines:
                yield arrived, b"\n".join(lines)


def _data_lines(event: bytes) -> list[bytes]:
    return [line for line in event.split(b"\n") if line.startswith(b"data:")]


def _read_stream(transcript: Transcript, exchange: Exchange) -> None:
    """A stream is whole when it says [DONE], or, as transformers ends it, why it finished."""
    finished = False
    for arrived, event in events(transcript.pieces):
        if event == b"[DONE]":
            finished = True
            continue
        answer = json.loads(event)
        _read_answer(answer, arrived, exchange)
        choices = answer.get("choices")
        finished |= bool(choices) and choices[0].get("finish_reason") is not None
    if not finished and exchange.error is None:
        exchange.error = "the stream ended without [DONE] or a finish_reason"


def _read_answer(answer: dict[str, object], arrived: float, exchange: Exchange) -> None:
    """One JSON object: an event of a stream, or a whole answer."""
    if answer.get("error") is not None:
        exchange.error = json.dumps(answer["error"])
        return
    choices = answer.get("choices")
    if isinstance(choices, list) and choices and _says_something(choices[0]):
        exchange.arrivals.append(arrived)
    usage = answer.get("usage")
    if isinstance(usage, dict):
        exchange.output_tokens = usage["completion_tokens"]
        exchange.prompt_tokens = usage["prompt_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        exchange.cached_tokens = details.get("cached_tokens") or 0


def _says_something(choice: dict[str, object]) -> bool:
    if "text" in choice:
        return bool(choice["text"])
    said = choice.get("delta") or choice.get("message") or {}
    assert isinstance(said, dict)
    return any(said.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls"))
