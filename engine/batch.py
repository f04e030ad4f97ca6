"""`Batch`: the tensors of one step. `engine/worker` fills it, models and attention read it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """All slices of a step, one after the other ("ragged"): there is no padding.

    Slice i owns rows query_offsets[i] .. query_offsets[i + 1] - 1 of everything with [tokens]. The
    lengths are also here as host integers, so that nobody has to wait for a device to read them.
    """

    token_ids: Tensor  # int64 [tokens]
    positions: Tensor  # int64 [tokens]
    query_offsets: Tensor  # int32 [sequences + 1]
    context_lengths: Tensor  # int32 [sequences]: computed tokens and this step's
    block_tables: Tensor  # int32 [sequences, max_blocks]; what lies past the context is not read
    slot_mapping: Tensor  # int64 [tokens]: block * block_size + offset, where each cell goes
    logits_rows: Tensor  # int64 [rows]: the rows of hidden states that want logits
    query_lengths: tuple[int, ...]
    context_lengths_host: tuple[int, ...]
    all_logits: bool = False  # `logits_rows` are all rows, in their order
