"""Log-probabilities in the three forms of the wire (API contract, section 6b)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from octavo.engine.step import TokenLogprobs

from ..text.choice import ScoredToken
from ..text.detokenizer import Detokenizer
from ..text.tokenizer import Tokenizer
from .answers import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)

_LOWEST = -9999.0  # JSON has no -inf

Entry = tuple[str, int, TokenLogprobs | None]
"""What a token brought to the text, its id, and its log-probabilities where they are known."""


class TokenNames:
    """How tokens are written: as text, or as `token_id:N` where the client asked for that."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def name(self, token_id: int) -> str:
        """A token by itself. One that is no whole character is written `bytes:\\xe2\\x80`."""
        if self._as_ids:
            return f"token_id:{token_id}"
        raw = self._tokenizer.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def raw(self, token_id: int) -> list[int]:
        return list(self._tokenizer.token_bytes(token_id))

    def shown(self, text: str, token_id: int) -> str:
        """A token in its place: what it brought to the text, so that tokens join to the text."""
        return self.name(token_id) if self._as_ids else text


def output_entries(tokens: Iterable[ScoredToken]) -> list[Entry]:
    return [(token.text, token.logprobs.token_id, token.logprobs) for token in tokens]


def prompt_entries(
    tokenizer: Tokenizer, text: str, ids: Sequence[int], scores: Sequence[TokenLogprobs]
) -> list[Entry]:
    """The tokens of an echoed prompt, whose text is `text`; nothing is known of the first one."""
    pieces = prompt_pieces(tokenizer, text, ids)
    known: list[TokenLogprobs | None] = [None, *scores]
    return list(zip(pieces, ids, known, strict=True))


def prompt_pieces(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> list[str]:
    """What each prompt token brings to the prompt's text.

    Nothing, if it is a control token that is not written out there. A space that only marks where
    a text begins is left out, too.
    """
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    pieces = []
    end = 0
    for token in ids:
        piece = detokenizer.feed(token)
        if not text.startswith(piece, end):
            if token in tokenizer.special_ids:
                piece = ""
            elif text.startswith(piece.removeprefix(" "), end):
                piece = piece.removeprefix(" ")
        end += len(piece)
        pieces.append(piece)
    pieces[-1] += detokenizer.finish()
    return pieces


def completion_logprobs(
    entries: Iterable[Entry], names: TokenNames, *, top: int, offset: int
) -> CompletionLogprobs:
    """The four lists; `offset` is where the first entry's text begins.

    Each map of alternatives has the `top` likeliest tokens and, always, the chosen one.
    """
    result = CompletionLogprobs()
    for text, token_id, scores in entries:
        shown = names.shown(text, token_id)
        result.tokens.append(shown)
        result.text_offset.append(offset)
        result.token_logprobs.append(None if scores is None else _finite(scores.logprob))
        result.top_logprobs.append(
            None if scores is None else _alternatives(scores, shown, names, top)
        )
        offset += len(text)
    return result


def chat_logprobs(tokens: Iterable[ScoredToken], names: TokenNames, *, top: int) -> ChatLogprobs:
    """One entry a token, each with exactly the `top` likeliest tokens."""
    content = []
    for token in tokens:
        scores = token.logprobs
        alternatives = [
            TopLogprob(token=names.name(i), logprob=_finite(logprob), bytes=names.raw(i))
            for i, logprob in _likeliest(scores, top)
        ]
        content.append(
            ChatTokenLogprob(
                token=names.name(scores.token_id),
                logprob=_finite(scores.logprob),
                bytes=list(token.raw),
                top_logprobs=alternatives,
            )
        )
    return ChatLogprobs(content=content)


def prompt_logprobs(
    scores: Sequence[TokenLogprobs], names: TokenNames, *, top: int
) -> PromptLogprobs:
    """One map a prompt token, by token id; null for the first."""
    result: PromptLogprobs = [None]
    for score in scores:
        ranked = {
            i: PromptLogprob(logprob=_finite(logprob), rank=rank, decoded_token=names.name(i))
            for rank, (i, logprob) in enumerate(_likeliest(score, top), 1)
        }
        chosen = PromptLogprob(
            logprob=_finite(score.logprob),
            rank=score.rank,
            decoded_token=names.name(score.token_id),
        )
        ranked.setdefault(score.token_id, chosen)
        result.append({str(i): entry for i, entry in ranked.items()})
    return result


def _likeliest(scores: TokenLogprobs, top: int) -> list[tuple[int, float]]:
    return list(zip(scores.top_ids[:top], scores.top_logprobs[:top], strict=True))


def _alternatives(
    scores: TokenLogprobs, shown: str, names: TokenNames, top: int
) -> dict[str, float]:
    """By text. Where two tokens look alike, the chosen one wins, then the likelier."""
    result: dict[str, float] = {}
    for token_id, logprob in _likeliest(scores, top):
        name = shown if token_id == scores.token_id else names.name(token_id)
        result.setdefault(name, _finite(logprob))
    result[shown] = _finite(scores.logprob)
    return result


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
