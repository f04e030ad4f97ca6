"""`SampleSearch`: n choices of one prompt, each a sequence with a seed of its own.

With n > 1 the root runs up to the last prompt token exclusive and is then forked, so that each
choice computes that token, and samples from it, itself: a choice is a sequence like any other.
"""

from __future__ import annotations

from ..executor.base import Capacity
from ..params import Emitted, FinishReason, Request, choice_seed
from ..sequence import Sequence
from ..step import Delta, Slice, SliceResult, Wants
from .search import Family, Terms


def open_choices(request: Request) -> list[int]:
    """The choices still to be run: all, but for those of a resumed request that had finished."""
    emitted = request.emitted
    choices = range(request.sampling.n)
    return [i for i in choices if not (i < len(emitted) and emitted[i].finished)]


class SampleSearch:
    """n choices, each sampled with its own seed; those that had finished are not run again."""

    __slots__ = ("_family", "_live", "_root_unwanted", "_terms", "_unborn")

    def __init__(
        self, root: Sequence, choices: list[int], capacity: Capacity, family: Family
    ) -> None:
        self._family = family
        self._terms = Terms(root.request, capacity)
        self._terms.bound(root)
        self._live: dict[int, Sequence] = {choices[0]: root}
        self._unborn = choices[1:]
        self._root_unwanted = False
        root.index = choices[0]
        root.seed = choice_seed(root.request.seed, root.index)
        if self._unborn and root.prompt_length > 1:
            root.end = root.prompt_length - 1
        else:
            self._branch(root)
        # The scores leave with the first ids of choice 0: if those were sent, so were they.
        scored = root.request.sampling.prompt_logprobs is not None
        delivered = root.index != 0 or bool(self._emitted(0))
        if scored and not delivered and root.prompt_length > 1:
            root.gathering = Wants.PROMPT_LOGPROBS

    def advance(
        self, sequence: Sequence, piece: Slice, result: SliceResult, now: float
    ) -> list[Delta]:
        if sequence.gathering:
            self._terms.score(sequence, piece, result)
        if self._unborn:
            if piece.start + piece.count >= sequence.end:
                self._branch(sequence)
            return []
        if result.token_ids:
            return [self._accept(sequence, result, now)]
        done = piece.start + piece.count >= sequence.end
        if done and len(sequence.token_ids) >= sequence.limit:  # no output was wanted
            return [self._delta(sequence, (), result, now, FinishReason.LENGTH)]
        return []

    def fail(self, sequence: Sequence, error: str, now: float) -> list[Delta]:
        indexes = [*([] if self._root_unwanted else [sequence.index]), *self._unborn]
        self._unborn = []
        self._end(sequence, FinishReason.ERROR)
        return self._terms.failures(indexes, sequence, error, now)

    def abort(self, index: int | None) -> None:
        if index is None:
            self._unborn = []
            for sequence in list(self._live.values()):
                self._end(sequence, FinishReason.ABORT)
        elif index in self._unborn or (index in self._live and self._unborn):
            self._root_unwanted |= index in self._live
            self._unborn = [other for other in self._unborn if other != index]
            if not self._unborn:
                (root,) = self._live.values()
                self._branch(root)
        elif index in self._live:
            self._end(self._live[index], FinishReason.ABORT)

    def emitted(self) -> tuple[Emitted, ...]:
        if self._unborn:  # the root has said nothing yet, and may be nobody's choice
            wanted = {*self._unborn, *([] if self._root_unwanted else self._live)}
        else:
            wanted = set(self._live)
        return tuple(
            Emitted(token_ids=self._said(index), finished=index not in wanted)
            for index in range(self._terms.request.sampling.n)
        )

    def _said(self, index: int) -> tuple[int, ...]:
        sequence = self._live.get(index)
        if sequence is None or self._unborn:
            return self._emitted(index)
        return tuple(sequence.token_ids[sequence.prompt_length :])

    def _branch(self, root: Sequence) -> None:
        """The root has come to the last prompt token: fork the other choices, be the first."""
        for index in self._unborn:
            child = self._live[index] = self._family.fork(root)
            child.index = index
            child.seed = choice_seed(root.request.seed, index)
            self._grow_up(child)
        self._unborn = []
        if self._root_unwanted:
            self._root_unwanted = False
            self._end(root, FinishReason.ABORT)
        else:
            self._grow_up(root)

    def _grow_up(self, sequence: Sequence) -> None:
        """From the prompt to a choice of its own, which goes on after what it has emitted."""
        emitted = self._emitted(sequence.index)
        sequence.token_ids.extend(emitted)
        if sequence.introduced:
            sequence.unsent = emitted
        self._terms.bound(sequence)

    def _emitted(self, index: int) -> tuple[int, ...]:
        emitted = self._terms.request.emitted
        return emitted[index].token_ids if index < len(emitted) else ()

    def _accept(self, sequence: Sequence, result: SliceResult, now: float) -> Delta:
        """Append sampled tokens up to the first that ends the sequence."""
        known, accepted, terms = sequence.token_ids, result.token_ids, self._terms
        for count, token in enumerate(accepted, 1):
            known.append(token)
            if token in terms.stop_ids and terms.ends(token, len(known) - sequence.prompt_length):
                stop_id = None if token in terms.end_ids else token
                accepted = accepted[:count]
                return self._delta(sequence, accepted, result, now, FinishReason.STOP, stop_id)
            if len(known) >= sequence.limit:
                return self._delta(sequence, accepted[:count], result, now, FinishReason.LENGTH)
        if sequence.first_token is None:
            return self._delta(sequence, accepted, result, now)
        return Delta(sequence.request.id, sequence.index, accepted, result.logprobs)  # most of all

    def _delta(
        self,
        sequence: Sequence,
        accepted: tuple[int, ...],
        result: SliceResult,
        now: float,
        reason: FinishReason | None = None,
        stop_id: int | None = None,
    ) -> Delta:
        """What is told of a choice first or last."""
        first = sequence.first_token is None
        untold = first and not self._emitted(sequence.index)  # else an earlier attempt has told it
        if first:
            sequence.first_token = now
        delta = Delta(
            request_id=sequence.request.id,
            index=sequence.index,
            token_ids=accepted,
            logprobs=result.logprobs[: len(accepted)],
            prompt_logprobs=tuple(self._terms.logprobs) if first and not sequence.index else (),
            cached_tokens=sequence.cached_tokens if untold else None,
            finish_reason=reason,
            stop_token_id=stop_id,
            timing=None if reason is None else self._terms.timing(sequence, now),
        )
        if reason is not None:
            self._end(sequence, reason)
        return delta

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        del self._live[sequence.index]
        self._family.end(sequence, reason)
