"""Log-probabilities that were asked for: of the chosen token, and of the likeliest ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from octavo.kernels.ops import Ops

from ..step import TokenLogprobs


def describe(
    ops: Ops, logprobs: Tensor, chosen: Tensor, counts: npt.NDArray[np.int64]
) -> tuple[Tensor, ...]:
    """What names the chosen token [rows] and the likeliest of each row [rows, vocab]: see
    `token_logprobs`."""
    values, ids = ops.largest(logprobs, int(counts.max(initial=0)))
    own = logprobs.gather(-1, chosen[:, None])[:, 0]
    return chosen, own, ops.rank(logprobs, chosen), ids, values


def token_logprobs(
    arrays: Sequence[npt.NDArray[Any]], counts: npt.NDArray[np.int64]
) -> list[TokenLogprobs]:
    """From the values of `describe`: the chosen token and the counts[i] likeliest."""
    return [
        TokenLogprobs(
            token_id=token,
            logprob=value,
            rank=rank,
            top_ids=tuple(top_ids[:count]),
            top_logprobs=tuple(top_values[:count]),
        )
        for token, value, rank, top_ids, top_values, count in zip(
            *(array.tolist() for array in arrays), counts.tolist(), strict=True
        )
    ]
