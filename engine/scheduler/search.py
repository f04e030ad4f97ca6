"""`Search`: how the sequences of one request grow, split and end.

`SampleSearch` samples n choices independently; `BeamSearch` keeps the likeliest histories. Both
start from one root sequence and split it by forks that share its blocks (copy-on-write). With
n > 1 the root runs up to the last prompt token exclusive and is then forked, so that each choice
computes that token, and samples from it, itself: a choice is a sequence like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..executor.base import Capacity
from ..params import FinishReason, Request, choice_seed
from ..sequence import Sequence
from ..step import Delta, Slice, SliceResult, Timing, TokenLogprobs


class Family(Protocol):
    """What a search may do to sequences; the scheduler does it."""

    def fork(self, parent: Sequence) -> Sequence:
        """A new sequence with the parent's history, sharing its blocks."""

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """The sequence needs nothing any more."""


class Search(Protocol):
    """One request's sequences. A Delta with a finish reason is the last of its choice."""

    def advance(
        self, sequence: Sequence, piece: Slice, result: SliceResult, now: float
    ) -> list[Delta]:
        """Take in what the committed slice `piece` of `sequence` yielded."""

    def fail(self, sequence: Sequence, error: str, now: float) -> list[Delta]:
        """`sequence` cannot be computed: end it, and every choice that depends on it."""

    def abort(self, index: int | None) -> None:
        """Nobody wants choice `index`, or any choice, any more."""


def begin(root: Sequence, capacity: Capacity, family: Family) -> Search | None:
    """The search that a request asks for, with its root sequence made ready to run; None when
    every choice of a resumed request had finished already."""
    params = root.request.sampling
    if params.beam_width:
        return BeamSearch(root, capacity, family)
    emitted = root.request.emitted
    choices = [i for i in range(params.n) if not (i < len(emitted) and emitted[i].finished)]
    return SampleSearch(root, choices, capacity, family) if choices else None


class _Prompt:
    """What both searches know of a request: its limits, its stops, its prompt's scores."""

    def __init__(self, request: Request, capacity: Capacity) -> None:
        params = request.sampling
        self.request = request
        length = len(request.prompt_token_ids)
        room = capacity.max_model_len - length
        wanted = room if params.max_tokens is None else min(params.max_tokens, room)
        self.limit = length + max(wanted, 0)
        self.end_ids = frozenset(() if params.ignore_eos else capacity.eos_token_ids)
        self.stop_ids = self.end_ids | frozenset(params.stop_token_ids)
        self.logprobs: list[TokenLogprobs] = []

    def bound(self, sequence: Sequence) -> None:
        """Set where `sequence` ends. One position at least is computed, even for no output."""
        sequence.limit = self.limit
        sequence.end = max(self.limit - 1, 1)

    def score(self, sequence: Sequence, piece: Slice, result: SliceResult) -> None:
        """Gather prompt log-probabilities. A recomputed slice may repeat some of them."""
        repeated = len(self.logprobs) - piece.start
        self.logprobs.extend(result.prompt_logprobs[repeated:])
        sequence.scoring = len(self.logprobs) < len(self.request.prompt_token_ids) - 1

    def ends(self, token: int, output_length: int) -> bool:
        """Whether `token`, as output number `output_length`, ends a sequence."""
        return token in self.stop_ids and output_length > self.request.sampling.min_tokens

    def timing(self, sequence: Sequence, now: float) -> Timing:
        first_scheduled = sequence.first_scheduled
        return Timing(
            arrival=self.request.arrival,
            first_scheduled=now if first_scheduled is None else first_scheduled,
            first_token=now if sequence.first_token is None else sequence.first_token,
            finished=now,
            preemptions=sequence.preemptions,
        )

    def failures(
        self, indexes: list[int], sequence: Sequence, error: str, now: float
    ) -> list[Delta]:
        return [
            Delta(
                request_id=self.request.id,
                index=index,
                finish_reason=FinishReason.ERROR,
                error=error,
                timing=self.timing(sequence, now),
            )
            for index in indexes
        ]


class SampleSearch:
    """n choices, each sampled with its own seed; those that had finished are not run again."""

    def __init__(
        self, root: Sequence, choices: list[int], capacity: Capacity, family: Family
    ) -> None:
        self._family = family
        self._prompt = _Prompt(root.request, capacity)
        self._prompt.bound(root)
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
        root.scoring = scored and not delivered and root.prompt_length > 1

    def advance(
        self, sequence: Sequence, piece: Slice, result: SliceResult, now: float
    ) -> list[Delta]:
        if sequence.scoring:
            self._prompt.score(sequence, piece, result)
        if self._unborn:
            if piece.start + piece.count >= sequence.end:
                self._branch(sequence)
            return []
        if result.token_ids:
            return [self._accept(sequence, result, now)]
        done = piece.start + piece.count >= sequence.end
        if done and len(sequence.token_ids) >= sequence.limit:  # no output was wanted
            return [self._delta(sequence, (), result, FinishReason.LENGTH, None, now)]
        return []

    def fail(self, sequence: Sequence, error: str, now: float) -> list[Delta]:
        indexes = [sequence.index, *self._unborn]
        self._unborn = []
        self._end(sequence, FinishReason.ERROR)
        return self._prompt.failures(indexes, sequence, error, now)

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

    def _branch(self, root: Sequence) -> None:
        """The root has come to the last prompt token: fork the other choices, be the first."""
        for index in self._unborn:
            child = self._live[index] = self._family.fork(root)
            child.index = index
            child.seed = choice_seed(root.request.seed, index)
            self._grow_up(child)
        self._unborn = []
        if self._root_unwanted:
            self._end(root, FinishReason.ABORT)
        else:
            self._grow_up(root)

    def _grow_up(self, sequence: Sequence) -> None:
        """From the prompt to a choice of its own, which goes on after what it has emitted."""
        emitted = self._emitted(sequence.index)
        sequence.token_ids.extend(emitted)
        if sequence.introduced:
            sequence.unsent = emitted
        self._prompt.bound(sequence)

    def _emitted(self, index: int) -> tuple[int, ...]:
        emitted = self._prompt.request.emitted
        return emitted[index].token_ids if index < len(emitted) else ()

    def _accept(self, sequence: Sequence, result: SliceResult, now: float) -> Delta:
        """Append sampled tokens up to the first that ends the sequence."""
        known, prompt = sequence.token_ids, self._prompt
        accepted = result.token_ids
        reason: FinishReason | None = None
        stop_id: int | None = None
        for count, token in enumerate(accepted, 1):
            known.append(token)
            if token in prompt.stop_ids and prompt.ends(token, len(known) - sequence.prompt_length):
                reason = FinishReason.STOP
                stop_id = None if token in prompt.end_ids else token
            elif len(known) >= sequence.limit:
                reason = FinishReason.LENGTH
            if reason is not None:
                accepted = accepted[:count]
                break
        return self._delta(sequence, accepted, result, reason, stop_id, now)

    def _delta(
        self,
        sequence: Sequence,
        accepted: tuple[int, ...],
        result: SliceResult,
        reason: FinishReason | None,
        stop_id: int | None,
        now: float,
    ) -> Delta:
        first = sequence.first_token is None
        if first:
            sequence.first_token = now
        delta = Delta(
            request_id=sequence.request.id,
            index=sequence.index,
            token_ids=accepted,
            logprobs=result.logprobs[: len(accepted)],
            prompt_logprobs=tuple(self._prompt.logprobs) if first and not sequence.index else (),
            cached_tokens=sequence.cached_tokens if first else None,
            finish_reason=reason,
            stop_token_id=stop_id,
            timing=None if reason is None else self._prompt.timing(sequence, now),
        )
        if reason is not None:
            self._end(sequence, reason)
        return delta

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        del self._live[sequence.index]
        self._family.end(sequence, reason)


@dataclass(slots=True)
class _Beam:
    sequence: Sequence
    total: float  # sum of the log-probabilities of its output
    candidates: tuple[tuple[int, float], ...] = ()  # of its next token, once computed


@dataclass(frozen=True, slots=True)
class _Hypothesis:
    """A finished beam."""

    score: float
    token_ids: tuple[int, ...]
    reason: FinishReason
    stop_token_id: int | None


class BeamSearch:
    """The `beam_width` likeliest histories, advanced in step; emits only at its end.

    Semantics of transformers' `early_stopping=True`: the continuations of all beams are ranked
    together by their summed log-probability. One that ends in a stop id is a hypothesis if it is
    among the first `beam_width`, else it is dropped; the best `beam_width` that do not end live on.
    The search is over when there are `beam_width` hypotheses, or when the length limit is reached:
    then the first `beam_width` continuations are hypotheses whatever their last token. The n best
    by sum(log p) / output length ** length_penalty are returned, the stop id counting as output.
    """

    def __init__(self, root: Sequence, capacity: Capacity, family: Family) -> None:
        self._family = family
        self._prompt = _Prompt(root.request, capacity)
        self._prompt.bound(root)
        root.seed = choice_seed(root.request.seed, 0)
        scored = root.request.sampling.prompt_logprobs is not None
        root.scoring = scored and root.prompt_length > 1
        self._width = root.request.sampling.beam_width
        self._beams = {root.id: _Beam(root, 0.0)}
        self._finished: list[_Hypothesis] = []

    def advance(
        self, sequence: Sequence, piece: Slice, result: SliceResult, now: float
    ) -> list[Delta]:
        if sequence.scoring:
            self._prompt.score(sequence, piece, result)
        if result.candidates:
            self._beams[sequence.id].candidates = result.candidates
            sequence.held = True
            if all(beam.candidates for beam in self._beams.values()):
                return self._continue(now)
        elif piece.start + piece.count >= sequence.end and sequence.limit <= sequence.known:
            nothing = _Hypothesis(0.0, (), FinishReason.LENGTH, None)  # no output was wanted
            self._finished = [nothing] * self._width
            return self._finish(now)
        return []

    def fail(self, sequence: Sequence, error: str, now: float) -> list[Delta]:
        self.abort(None)
        indexes = list(range(sequence.request.sampling.n))
        return self._prompt.failures(indexes, sequence, error, now)

    def abort(self, index: int | None) -> None:
        """A single choice is not known before the end, so only all of them can be aborted."""
        if index is None:
            for beam in self._beams.values():
                self._family.end(beam.sequence, FinishReason.ABORT)
            self._beams = {}

    def _continue(self, now: float) -> list[Delta]:
        """All beams have their candidates: choose those that live on."""
        chosen: dict[int, list[tuple[int, float]]] = {}  # beam -> continuations
        living = 0
        final = False
        for rank, (total, beam, token) in enumerate(self._ranked()):
            output = beam.sequence.token_ids[beam.sequence.prompt_length :]
            final = len(output) + 1 >= beam.sequence.limit - beam.sequence.prompt_length
            ended = self._prompt.ends(token, len(output) + 1)
            if final or ended:
                if rank < self._width:
                    self._finished.append(self._hypothesis(total, [*output, token], ended))
            elif living < self._width:
                chosen.setdefault(beam.sequence.id, []).append((token, total))
                living += 1
            if rank + 1 >= self._width and (final or living >= self._width):
                break
        if final or len(self._finished) >= self._width or not chosen:
            return self._finish(now)
        self._replace(chosen)
        return []

    def _ranked(self) -> Iterator[tuple[float, _Beam, int]]:
        """Continuations of all beams, likeliest first; ties go to the earlier beam."""
        options = [
            (beam.total + logprob, beam, token)
            for beam in self._beams.values()
            for token, logprob in beam.candidates
        ]
        return iter(sorted(options, key=lambda option: -option[0]))

    def _hypothesis(self, total: float, output: list[int], ended: bool) -> _Hypothesis:
        score = total / len(output) ** self._prompt.request.sampling.length_penalty
        if not ended:
            return _Hypothesis(score, tuple(output), FinishReason.LENGTH, None)
        stop_id = None if output[-1] in self._prompt.end_ids else output[-1]
        return _Hypothesis(score, tuple(output), FinishReason.STOP, stop_id)

    def _replace(self, chosen: dict[int, list[tuple[int, float]]]) -> None:
        """Every chosen continuation is a beam: the first of a parent in its place, the others
        as forks of it."""
        parents = self._beams
        self._beams = {}
        for beam in parents.values():
            if beam.sequence.id not in chosen:
                self._family.end(beam.sequence, FinishReason.ABORT)
        for parent, continuations in chosen.items():
            sequence = parents[parent].sequence
            sequence.held = False
            forks = [self._family.fork(sequence) for _ in continuations[1:]]
            if sequence.introduced:
                sequence.unsent = (*sequence.unsent, continuations[0][0])
            for heir, (token, total) in zip([sequence, *forks], continuations, strict=True):
                heir.token_ids.append(token)
                self._beams[heir.id] = _Beam(heir, total)

    def _finish(self, now: float) -> list[Delta]:
        request = self._prompt.request
        best = sorted(self._finished, key=lambda h: -h.score)[: request.sampling.n]
        best += best[-1:] * (request.sampling.n - len(best))  # a vocabulary smaller than the beam
        any_beam = next(iter(self._beams.values())).sequence
        timing = self._prompt.timing(any_beam, now)
        deltas = [
            Delta(
                request_id=request.id,
                index=index,
                token_ids=hypothesis.token_ids,
                prompt_logprobs=() if index else tuple(self._prompt.logprobs),
                cached_tokens=any_beam.cached_tokens,
                finish_reason=hypothesis.reason,
                stop_token_id=hypothesis.stop_token_id,
                score=hypothesis.score,
                timing=timing,
            )
            for index, hypothesis in enumerate(best)
        ]
        self.abort(None)
        return deltas
