"""`Proposer`: drafts what sequences may say next. A wrong guess costs time and changes nothing.

Whether guesses are worth their time is not its business: planning asks for as many as are.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Proposer(Protocol):
    """Drafts chains of tokens."""

    def propose(self, known: npt.NDArray[np.int32], most: int) -> tuple[int, ...]:
        """`most` tokens, or fewer, that may follow the known ones of a sequence, contiguous; empty
        for nothing."""
