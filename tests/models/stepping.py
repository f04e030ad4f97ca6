"""Running a model step by step over a paged cache with scattered blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.engine.batch import Batch
from octavo.engine.kv_cache import KVCache
from octavo.engine.models.base import Model
from octavo.kernels.registry import resolve

CPU = torch.device("cpu")


class Stepper:
    """Some sequences of one model, each at its own position."""

    def __init__(
        self,
        model: Model,
        sequences: Sequence[Tensor],
        *,
        block_size: int = 4,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._model = model
        self._sequences = sequences
        self._computed = [0] * len(sequences)
        per_sequence = max(-(-len(s) // block_size) for s in sequences)
        blocks = len(sequences) * per_sequence
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(0))
        self._tables = order.view(len(sequences), per_sequence)
        self.kv = KVCache(
            model.config,
            resolve(CPU),
            num_blocks=blocks,
            block_size=block_size,
            dtype=dtype,
            device=CPU,
        )

    def step(self, counts: dict[int, int]) -> list[Tensor]:
        """Compute the next `counts[i]` tokens of each sequence i; logits [count, vocab] of each."""
        starts = [self._computed[i] for i in counts]
        ids, positions, slots = [], [], []
        size = self.kv.block_size
        for (index, count), start in zip(counts.items(), starts, strict=True):
            place = torch.arange(start, start + count)
            ids.append(self._sequences[index][start : start + count])
            positions.append(place)
            slots.append(self._tables[index][place // size] * size + place % size)
            self._computed[index] += count
        contexts = tuple(self._computed[i] for i in counts)
        queries = tuple(counts.values())
        batch = Batch(
            token_ids=torch.cat(ids),
            positions=torch.cat(positions),
            query_offsets=torch.tensor([0, *queries]).cumsum(0).int(),
            context_lengths=torch.tensor(contexts, dtype=torch.int32),
            block_tables=self._tables[list(counts)].int(),
            slot_mapping=torch.cat(slots),
            logits_rows=torch.arange(sum(queries)),
            query_lengths=queries,
            context_lengths_host=contexts,
        )
        with torch.inference_mode():
            hidden = self._model.forward(batch, self.kv)
            logits = self._model.logits(hidden[batch.logits_rows])
        return list(logits.split(queries))
