"""`ChoiceText`: one choice's tokens become its text, up to a stop string, each with its share."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from octavo.engine.params import FinishReason, SamplingParams
from octavo.engine.step import Delta, TokenLogprobs

from .detokenizer import Detokenizer
from .markers import NO_TOKEN
from .stop import StopScanner
from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token's log-probabilities, and what of the text it brought.

    A token that only begins a character brings nothing, the one that ends it brings all of it:
    the texts of a choice's tokens, joined, are its text. So are the `raw` bytes, except where a
    text ends inside a character.
    """

    text: str
    raw: bytes
    logprobs: TokenLogprobs


Piece = tuple[int, str]
"""A token, and text that is given out with it. NO_TOKEN: the text belongs to earlier ones."""


class _Unpassed(NamedTuple):
    """A token that was not given out yet, and the place of its text, in characters."""

    token: int
    start: int
    end: int
    whole: bool  # its text must not be given out in part


@dataclass(slots=True)
class _Unreleased:
    text: str
    raw: bytes
    end: int  # the text must be released up to here, in characters, before this may be shown
    logprobs: TokenLogprobs


class ChoiceText:
    """Fed with one choice's deltas. `finished` once its end was seen, here or by the engine."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._scanner = StopScanner(params.stop, include=params.include_stop_str_in_output)
        self._skipped = tokenizer.special_ids if params.skip_special_tokens else frozenset()
        self._shows_stop_token = params.include_stop_str_in_output or not params.skip_special_tokens
        self._unsearched = params.min_tokens if params.stop else 0  # tokens still to be let through
        self._special = tokenizer.special_ids
        self._unpassed: deque[_Unpassed] = deque()
        self._unreleased: deque[_Unreleased] = deque()
        self._made = 0  # characters, whether certain or not
        self._certain = ""  # text, not given out yet
        self._released = 0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def take(self, delta: Delta) -> tuple[tuple[Piece, ...], tuple[ScoredToken, ...], int]:
        """The text that is certain now, the tokens it is made of, and how many tokens counted.

        The text is in pieces. A token is given out, once, when all the text in front of it is, so
        that the pieces are in the order of the text even where a stop string is suspected. Tokens
        after a stop string do not count. Scored tokens are only listed where they have
        log-probabilities.
        """
        used = 0
        stops = delta.finish_reason is FinishReason.STOP and not self._shows_stop_token
        for token in delta.token_ids:
            used += 1
            silent = stops and used == len(delta.token_ids)
            text = "" if silent else self._detokenizer.feed(token)
            if delta.logprobs:
                self._note(token, text, silent, delta.logprobs[used - 1])
            start, self._made = self._made, self._made + len(text)
            self._unpassed.append(_Unpassed(token, start, self._made, token in self._special))
            if self._unsearched:
                self._unsearched -= 1
                self._certain += text
            else:
                self._certain += self._scanner.feed(text)
            if self._scanner.matched is not None:
                break
        if self._scanner.matched is None and delta.last:
            self._certain += self._flushed(delta)
        if self._scanner.matched is not None:
            self.finish_reason, self.stop_reason = FinishReason.STOP, self._scanner.matched
        return tuple(self._pieces()), self._tokens(), used

    def _pieces(self) -> list[Piece]:
        """The certain text, each token in its place."""
        pieces: list[Piece] = []
        end = self._released + len(self._certain)
        token, start = NO_TOKEN, self._released
        while self._unpassed and self._unpassed[0].start <= end:
            next_one = self._unpassed[0]
            if next_one.whole and next_one.end > end and not self.finished:
                end = next_one.start
                break
            self._unpassed.popleft()
            if token != NO_TOKEN or next_one.start > start:
                pieces.append((token, self._given_out(next_one.start)))
            token, start = next_one.token, next_one.start
        if token != NO_TOKEN or end > start:
            pieces.append((token, self._given_out(end)))
        if self.finished:  # what is left belongs to a stop string
            pieces += [(rest.token, "") for rest in self._unpassed if not rest.whole]
        return pieces

    def _given_out(self, end: int) -> str:
        """The certain text up to `end`, in characters of all text."""
        size = end - self._released
        text, self._certain = self._certain[:size], self._certain[size:]
        self._released = end
        return text

    def _flushed(self, delta: Delta) -> str:
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_token_id
        rest = self._detokenizer.finish()
        self._made += len(rest)
        if rest and self._unreleased:  # U+FFFD for what the last bytes began
            self._unreleased[-1].text += rest
            self._unreleased[-1].end = self._made
        return self._scanner.feed(rest) + self._scanner.finish()

    def _note(self, token: int, text: str, silent: bool, logprobs: TokenLogprobs) -> None:
        raw = b"" if silent or token in self._skipped else self._tokenizer.token_bytes(token)
        # A token that brings no character yet waits for the one that does.
        begins = not text and self._detokenizer.holds_back
        end = self._made + (1 if begins else len(text))
        self._unreleased.append(_Unreleased(text, raw, end, logprobs))

    def _tokens(self) -> tuple[ScoredToken, ...]:
        """Those whose text has been released; at the end all, cut where the text was cut."""
        ready = []
        while self._unreleased and (self.finished or self._unreleased[0].end <= self._released):
            token = self._unreleased.popleft()
            excess = token.end - self._released if token.text else 0
            if excess > 0:
                token.text = token.text[: max(0, len(token.text) - excess)]
                token.raw = token.text.encode()
            ready.append(ScoredToken(token.text, token.raw, token.logprobs))
        return tuple(ready)
