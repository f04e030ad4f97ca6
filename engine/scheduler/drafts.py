"""`Drafts`: guesses of what sequences will say next, from a wish to a verdict.

A draft is verified in the step after the one that proposed it, as part of the same slice: its
positions count as computed when the plan is made, and those of wrong guesses are taken off when it
is committed. Nothing rests on a guess before that: a sequence is not planned ahead of its draft,
its blocks are published up to the known tokens, and nobody gives way to a draft.

A guess has a price (`GuessPrice`), and is worth the time of one token of its sequence, which is the
step's by the number of sequences, if it is right, which `Luck` estimates. Guesses are verified as
far as they are worth more than their price by `_MARGIN`, and where all of a step together pay for
its being one that verifies. Where right guesses would not pay, nobody looks for any. What is not
worth it by what is known is tried nevertheless now and then, for `_TRIALS` of the time: luck
changes with the text. All is counted in steps without guesses.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from functools import partial

from ..cache.manager import BlockManager
from ..sequence import Sequence, Status
from ..step import Slice, SliceResult, StepPlan
from .guess_price import GuessPrice
from .luck import Luck

_MARGIN = 1.25
_TRIALS = 0.005  # of the time, for guesses that are not worth it
_TRIED = 3  # of these at a time
_SHORTEST_PAUSE, _LONGEST_PAUSE = 4, 64  # tokens after guesses that came to nothing
_LOOK_AGAIN = 8  # tokens after nothing was found, at most
_MEMORY_OF_ONE, _MEMORY_OF_ALL = 0.85, 0.98  # weight of a draft when the next has been seen


@dataclass(slots=True)
class _Record:
    """A sequence's luck, and when guesses are looked for again."""

    luck: Luck = field(default_factory=partial(Luck, _MEMORY_OF_ONE))
    pause: int = 0  # tokens without a guess, after the last that came to nothing
    resumes: int = 0  # known tokens


class Drafts:
    """Keeps the drafts of sequences, says how much is guessed, and counts what came of it.

    Args:
        longest: tokens of a draft; 0: nothing is guessed.
        most_draws: of a step, as in `Capacity`.
    """

    def __init__(self, blocks: BlockManager, *, longest: int, most_draws: int) -> None:
        self.made = 0  # counter
        self.tokens = 0  # counter
        self.accepted: list[int] = []  # by place in the draft, counters
        self._blocks = blocks
        self._price = GuessPrice()
        self._longest = longest
        self._most_draws = most_draws
        self._pays = longest > 0  # whether guesses would, if they were right
        self._proposed = False  # there are drafts that have not been weighed
        self._look_again = 1
        self._credit = 0.0  # steps, for trials
        self._records: dict[int, _Record] = {}  # by sequence, of those that were guessed for
        # Of all sequences of about the same temperature: nothing says more about it beforehand.
        self._others: defaultdict[int, Luck] = defaultdict(partial(Luck, _MEMORY_OF_ALL))

    # --- how much is guessed -------------------------------------------------------------------

    def wish(self, sequence: Sequence) -> int:
        """How many tokens to guess, at most, behind the next of a sequence."""
        if not self._pays:
            return 0
        record = self._records.get(sequence.id)
        return self._longest if record is None or sequence.known >= record.resumes else 0

    def propose(self, sequence: Sequence, draft: tuple[int, ...]) -> None:
        """A committed step, asked to, proposes what `sequence` says next, or nothing.

        Of a sequence that was planned ahead of it nothing more is planned before that step, too,
        has landed and proposed anew. What has ended or given way takes no draft.
        """
        if sequence.status is not Status.RUNNING:
            return
        if not draft:
            self._record(sequence).resumes = sequence.known + self._look_again
        elif not sequence.promised:
            # The last token of a sequence never needs computing, so it is not guessed.
            sequence.draft = draft[: max(0, sequence.end - sequence.known)]
            self._proposed = True

    def weigh(self, running: Several[Sequence]) -> None:
        """A step is about to be planned: leave what is worth it of the drafts of those that run."""
        if not self._longest:
            return
        token = 1 / max(1, len(running))  # what one is worth
        verifying, price = self._price.of(max(1, len(running)))
        price *= _MARGIN
        places = max(0, self._most_draws - len(running))
        self._look_again = min(_LOOK_AGAIN, len(running))  # a step looks about once
        most = min(places, len(running) * self._longest)
        self._pays = most * (token - price) > verifying
        if not self._proposed:
            return
        self._proposed = False
        drafted = [sequence for sequence in running if sequence.draft]
        likely = sorted(
            [
                (chance, sequence.id)
                for sequence in drafted
                for chance in self._record(sequence).luck.chances(
                    self._of_others(sequence).share, len(sequence.draft)
                )
            ],
            reverse=True,
        )
        count = _even(min(places, sum([chance * token > price for chance, _ in likely])))
        gain = sum([chance * token - price for chance, _ in likely[:count]])
        if gain <= verifying:
            count = min(_TRIED, places, len(likely))
            cost = verifying + count * price
            if self._credit < cost:
                count = 0
            else:
                self._credit = 0.0
        lengths = Counter([sequence for _, sequence in likely[:count]])
        for sequence in drafted:
            sequence.draft = sequence.draft[: lengths[sequence.id]]
            if not sequence.draft:
                self._rest(sequence)

    def observe(self, plan: StepPlan, seconds: float) -> None:
        """A step that took so long, as such steps do, has been computed."""
        if self._longest and len(plan.slices) < self._most_draws:  # else there is no room for any
            self._credit += _TRIALS
            self._price.observe(plan, seconds)

    # --- what came of it -----------------------------------------------------------------------

    def settle(self, sequence: Sequence, piece: Slice, result: SliceResult) -> None:
        """The verdict on the draft of a slice: the positions of wrong guesses are not computed."""
        if not result.token_ids:
            return  # it has failed: so has its sequence
        count = len(piece.draft)
        right = min(len(result.token_ids) - 1, count)
        self.made += 1
        self.tokens += count
        self.accepted += [0] * (right - len(self.accepted))
        for place in range(right):
            self.accepted[place] += 1
        record = self._record(sequence)
        record.luck.see(right, count)
        self._of_others(sequence).see(right, count)
        if right:
            record.pause = 0
        else:
            self._rest(sequence)
        self._take_off(sequence, sequence.drafted - right)

    def give_up(self, sequence: Sequence) -> None:
        """It gives way: what is in flight may bring more tokens, whose cells nobody will have."""
        sequence.draft = ()
        self._take_off(sequence, sequence.drafted)

    def forget(self, sequence: Sequence) -> None:
        """It has ended."""
        self._records.pop(sequence.id, None)

    # --- inside --------------------------------------------------------------------------------

    def _record(self, sequence: Sequence) -> _Record:
        record = self._records.get(sequence.id)
        if record is None:
            record = self._records[sequence.id] = _Record()
        return record

    def _of_others(self, sequence: Sequence) -> Luck:
        return self._others[min(8, int(4 * sequence.request.sampling.temperature))]

    def _rest(self, sequence: Sequence) -> None:
        """Guessing came to nothing: for some tokens it is not tried, and for twice as many the next
        time."""
        record = self._record(sequence)
        record.pause = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, 2 * record.pause))
        record.resumes = sequence.known + record.pause

    def _take_off(self, sequence: Sequence, count: int) -> None:
        """The last `count` positions are not computed, the others of the draft for good."""
        if count > 0:
            self._blocks.trim(sequence, sequence.computed - count)
        sequence.drafted = 0


def _even(count: int) -> int:
    """`count` or a little less: with few numbers of tokens there are few kinds of steps, and each
    comes up often enough to be recorded."""
    power = 1 << max(0, count.bit_length() - 1)
    return count if count < 4 else power + power // 2 * (count >= power + power // 2)
