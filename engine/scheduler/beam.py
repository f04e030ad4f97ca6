"""`BeamSearch`: the likeliest histories of one prompt, advanced in step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..executor.base import Capacity
from ..params import Emitted, FinishReason, choice_seed
from ..sequence import Sequence
from ..step import Delta, Slice, SliceResult, Wants
from .search import Family, Terms


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
        self._terms = Terms(root.request, capacity)
        self._terms.bound(root)
        root.seed = choice_seed(root.request.seed, 0)
        scored = root.request.sampling.prompt_logprobs is not None
        root.yields = Wants.CANDIDATES
        if scored and root.prompt_length > 1:
            root.gathering = Wants.PROMPT_LOGPROBS
        self._width = root.request.sampling.beam_width
        self._beams = {root.id: _Beam(root, 0.0)}
        self._finished: list[_Hypothesis] = []

    def advance(
        self, sequence: Sequence, piece: Slice, result: SliceResult, now: float
    ) -> list[Delta]:
        if sequence.gathering:
            self._terms.score(sequence, piece, result)
        if result.candidates:
            self._beams[sequence.id].candidates = result.candidates
            sequence.held = True
            if all(beam.candidates for beam in self._beams.values()):
                return self._continue(now)
        elif piece.wants & Wants.CANDIDATES:
            return self.fail(sequence, "the executor gave no candidates for this beam", now)
        elif piece.start + piece.count >= sequence.end and sequence.limit <= sequence.known:
            nothing = _Hypothesis(0.0, (), FinishReason.LENGTH, None)  # no output was wanted
            self._finished = [nothing] * self._width
            return self._finish(now)
        return []

    def fail(self, sequence: Sequence, error: str, now: float) -> list[Delta]:
        self.abort(None)
        indexes = list(range(sequence.request.sampling.n))
        return self._terms.failures(indexes, sequence, error, now)

    def abort(self, index: int | None) -> None:
        """A single choice is not known before the end, so only all of them can be aborted."""
        if index is None:
            for beam in self._beams.values():
                self._family.end(beam.sequence, FinishReason.ABORT)
            self._beams = {}

    def emitted(self) -> tuple[Emitted, ...]:
        return ()

    def _continue(self, now: float) -> list[Delta]:
        """All beams have their candidates: choose those that live on."""
        chosen: dict[int, list[tuple[int, float]]] = {}  # beam -> continuations
        living = 0
        final = False
        for rank, (total, beam, token) in enumerate(self._ranked()):
            output = beam.sequence.token_ids[beam.sequence.prompt_length :]
            final = len(output) + 1 >= beam.sequence.limit - beam.sequence.prompt_length
            ended = self._terms.ends(token, len(output) + 1)
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
        score = total / len(output) ** self._terms.request.sampling.length_penalty
        if not ended:
            return _Hypothesis(score, tuple(output), FinishReason.LENGTH, None)
        stop_id = None if output[-1] in self._terms.end_ids else output[-1]
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
        request = self._terms.request
        best = sorted(self._finished, key=lambda h: -h.score)[: request.sampling.n]
        best += best[-1:] * (request.sampling.n - len(best))  # a vocabulary smaller than the beam
        any_beam = next(iter(self._beams.values())).sequence
        timing = self._terms.timing(any_beam, now)
        deltas = [
            Delta(
                request_id=request.id,
                index=index,
                token_ids=hypothesis.token_ids,
                prompt_logprobs=() if index else tuple(self._terms.logprobs),
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
