"""Token histories for tests of the sampler, without a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.engine.sampling.logits import Histories, Rows
from octavo.engine.sampling.sampler import Sampled, Sampler


@dataclass
class FakeHistories:
    """What `octavo.engine.sampling.logits.Histories` asks for."""

    token_ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    prompt_lengths: npt.NDArray[np.int64]


def histories(
    tokens: Sequence[Sequence[int]], prompt_lengths: Sequence[int] | None = None
) -> FakeHistories:
    """Row i knows tokens[i]; without prompt lengths all of it is prompt."""
    lengths = np.array([len(row) for row in tokens], dtype=np.int64)
    table = np.full((len(tokens), max(lengths) + 8), -1, dtype=np.int32)
    for row, ids in enumerate(tokens):
        table[row, : len(ids)] = ids
    prompts = lengths.copy() if prompt_lengths is None else np.array(prompt_lengths, np.int64)
    return FakeHistories(table, lengths, prompts)


def sample_now(sampler: Sampler, logits: Tensor, rows: Rows, known: Histories) -> Sampled:
    """Draw, and read at once what was drawn."""
    settled = sampler.settle(rows, known)
    drawn = sampler.draw(logits, settled, [torch.from_numpy(array) for array in settled.arrays])
    return drawn.read([tensor.numpy() for tensor in drawn.tensors])
