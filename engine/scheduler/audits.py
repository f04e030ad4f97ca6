"""`Audits`: the books of the blocks, held against the sequences again and again."""

from __future__ import annotations

import logging
from dataclasses import replace

from ..cache.manager import BlockManager
from .roster import Roster

log = logging.getLogger(__name__)

# From one look at every block to the next: so many steps, more for many blocks (a look at 100,000
# takes some 50 ms), and a quarter of it when nobody waits.
_STEPS = 1024
_BLOCKS_PER_STEP = 8
_FAULTS_TOLD = 5


class Audits:
    """Cheap at every step, thorough now and then. What is wrong is mended and counted, and never
    ends the engine."""

    def __init__(self, blocks: BlockManager, roster: Roster) -> None:
        self.failures = 0  # counter
        self._blocks = blocks
        self._roster = roster
        self._every = max(_STEPS, blocks.size // _BLOCKS_PER_STEP)
        self._last = 0  # the step of the last thorough one

    def make(self, step: int) -> None:
        """One audit, before plan `step` is made.

        A request whose blocks may have been overwritten is begun anew from what it has said: what
        is in flight for it is dropped, and its stream goes on with the very next token.
        """
        live = self._roster.live.values()
        thoroughly = step - self._last >= (self._every if live else self._every // 4)
        if thoroughly:
            self._last = step
        mended = self._blocks.audit(live, thoroughly=thoroughly)
        if mended is None:
            return
        self.failures += 1
        doubtful = {sequence.request.id: sequence.request for sequence in mended.doubtful}
        log.error(
            "the block accounting was wrong and has been mended (%d faults: %s); begun anew: %s",
            len(mended.faults),
            "; ".join(mended.faults[:_FAULTS_TOLD]),
            ", ".join(doubtful) or "no request",
        )
        for request in doubtful.values():
            search = self._roster.searches[request.id]
            emitted = search.emitted()
            search.abort(None)
            self._roster.begin(replace(request, emitted=emitted))
