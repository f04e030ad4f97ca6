"""Constrained answers: which tokens a grammar allows next, and which it leaves no choice about.

`GrammarCompiler` turns a `GrammarSpec` into an automaton in a thread of its own; `Grammar` is one
sequence's walk through it (`grammar_rule.py` has the `LogitsRule` that applies its masks). The
parser is llguidance: an Earley parser over a lazily built lexer.

Where a grammar stands is a pure function of the sequence's output ids: nothing has to be saved.
So is the forced run: within it the mask leaves exactly its next token, and whether the run is taken
at once or sampled token by token, the answer is the same.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask_par

from ..errors import BrokenCheckpoint, SequenceFailed
from ..params import GrammarSpec
from ..step import GRAMMAR_FAULT

Bitmask = npt.NDArray[np.int32]  # [rows, words], token t is bit t % 32 of word t // 32

WORD_BITS = 32
_COMPILED_GRAMMARS = 256
_COMPILED_TEXT = 16 << 20  # characters of all cached grammars together


class Grammar:
    """One sequence's walk through a grammar. Not thread-safe.

    Args:
        matcher: at the start of the answer; owned by this object.
        end: the end-of-sequence id to force where nothing else may follow.
    """

    def __init__(self, matcher: LLMatcher, end: int) -> None:
        self._matcher = matcher
        self._end = end
        self._runs = [self._run()]  # one per accepted token and one for the start

    @property
    def done(self) -> bool:
        """Whether the answer is complete and nothing but its end may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def error(self) -> str | None:
        """Why the walk cannot go on, if it cannot."""
        if not self._matcher.is_error():
            return None
        first_line: str = self._matcher.get_error().partition("\n")[0]
        return f"{GRAMMAR_FAULT} could not be followed: {first_line}"

    def forced(self) -> tuple[int, ...]:
        """The tokens that must come next, all of them; empty where there is a choice.

        At the end of the answer it is the end-of-sequence token.
        """
        run, taken = self._runs[-1]
        return run[taken:]

    def accept(self, token_ids: Sequence[int]) -> None:
        """Go on by these tokens.

        Raises:
            SequenceFailed: the grammar does not allow one of them, or is too costly to follow.
        """
        for token_id in token_ids:
            run, taken = self._runs[-1]
            if not self._matcher.consume_token(token_id):
                raise SequenceFailed(self.error or f"{GRAMMAR_FAULT} had ended")
            within = taken + 1 < len(run) and run[taken] == token_id
            self._runs.append((run, taken + 1) if within else self._run())

    def rollback(self, count: int) -> None:
        """Forget the last `count` accepted tokens."""
        if count:
            self._matcher.rollback(count)
            del self._runs[-count:]

    def mask(self, vocab_size: int) -> Bitmask:
        """The allowed tokens, int32 [1, words]."""
        masks = np.zeros((1, -(-vocab_size // WORD_BITS)), dtype=np.int32)
        fill_masks([self], masks, LLExecutor(1))
        return masks

    def _run(self) -> tuple[tuple[int, ...], int]:
        if self.done:
            return (self._end,), 0
        return tuple(self._matcher.compute_ff_tokens()), 0


def fill_masks(grammars: Sequence[Grammar], masks: Bitmask, executor: LLExecutor) -> None:
    """The allowed tokens of each grammar in its row of `masks`; none where it has an error."""
    free = []
    for row, grammar in enumerate(grammars):
        if forced := grammar.forced():
            masks[row] = 0
            masks.view(np.uint32)[row, forced[0] // WORD_BITS] = 1 << forced[0] % WORD_BITS
        else:
            free.append(row)
    if free:
        walks = [(grammars[row]._matcher, row) for row in free]
        fill_next_token_bitmask_par(executor, walks, masks)
    for row in free:
        if grammars[row].error is not None:
            masks[row] = 0


class GrammarCompiler:
    """Compiles grammars in a thread of its own, and keeps those used last. Thread-safe.

    Args:
        load: gives the tokenizer of the checkpoint whose tokens the masks are about; called in
            that thread, at once. A BrokenCheckpoint of it fails every sequence with a grammar.
        capacity, text_capacity: compiled grammars kept, and their characters together.
    """

    def __init__(
        self,
        load: Callable[[], LLTokenizer],
        *,
        capacity: int = _COMPILED_GRAMMARS,
        text_capacity: int = _COMPILED_TEXT,
    ) -> None:
        self._capacity = capacity
        self._text_capacity = text_capacity
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-grammar")
        self._tokenizer = self._thread.submit(load)
        self._lock = threading.Lock()  # over what follows
        self._compiled: OrderedDict[GrammarSpec, Future[LLMatcher]] = OrderedDict()
        self._text = 0  # characters of what is kept

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, vocab_size: int, stop_ids: Sequence[int]
    ) -> GrammarCompiler:
        """From a checkpoint folder's tokenizer.json.

        Args:
            vocab_size: columns of the logits; ids without a token are never allowed.
            stop_ids: the model's end-of-sequence ids, the one to force first.
        """
        return cls(partial(_read_tokenizer, Path(folder), vocab_size, tuple(stop_ids)))

    def ready(self, spec: GrammarSpec) -> bool:
        """Whether `start` would not wait; begins to compile what is not yet there."""
        return self._future(spec).done()

    def start(self, spec: GrammarSpec) -> Grammar:
        """A walk at the beginning of an answer; waits where `ready` is false.

        Raises:
            SequenceFailed: the text is no grammar, or too big a one.
        """
        try:
            prototype = self._future(spec).result()
        except BrokenCheckpoint as error:
            raise SequenceFailed(str(error)) from None
        except (ValueError, TypeError, RecursionError) as error:
            raise SequenceFailed(f"{GRAMMAR_FAULT} is no {spec.kind}: {error}") from None
        grammar = Grammar(prototype.deep_copy(), self._tokenizer.result().eos_token)
        if grammar.error is not None:
            raise SequenceFailed(grammar.error)
        return grammar

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _future(self, spec: GrammarSpec) -> Future[LLMatcher]:
        with self._lock:
            future = self._compiled.get(spec)
            if future is None:
                future = self._compiled[spec] = self._thread.submit(self._compile, spec)
                self._text += len(spec.text)
                self._evict()
            self._compiled.move_to_end(spec)
            return future

    def _compile(self, spec: GrammarSpec) -> LLMatcher:
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self._tokenizer.result(), spec.source, log_level=0, limits=limits)
        matcher.compute_bitmask()  # builds the part of the lexer that every answer begins with
        return matcher

    def _evict(self) -> None:
        while len(self._compiled) > 1 and (
            len(self._compiled) > self._capacity or self._text > self._text_capacity
        ):
            spec, _ = self._compiled.popitem(last=False)
            self._text -= len(spec.text)


def _read_tokenizer(folder: Path, vocab_size: int, stop_ids: tuple[int, ...]) -> LLTokenizer:
    try:
        if not stop_ids:
            raise ValueError("the model has no end-of-sequence token")
        description = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        description |= {"truncation": None, "padding": None}
        return LLTokenizer(json.dumps(description), n_vocab=vocab_size, eos_token=list(stop_ids))
    except Exception as error:  # the library raises plain exceptions
        raise BrokenCheckpoint(
            f"Answers of this model cannot be constrained: grammars cannot be compiled for its "
            f"tokenizer.json: {error}."
        ) from None
