"""`Proposer`: drafts what sequences may say next. A wrong guess costs time and changes nothing."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Proposer(Protocol):
    """Drafts chains of tokens, by row of the sequence table."""

    def admit(self, row: int) -> None:
        """A sequence now lives in `row`; forget who lived there before."""

    def propose(
        self, row: int, known: npt.NDArray[np.int32], accepted: int | None
    ) -> tuple[int, ...]:
        """What may follow the known tokens of a sequence; empty for nothing. `accepted`: how many
        tokens of a draft were right in this step; None: there was none."""
