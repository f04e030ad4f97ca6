"""Inputs of steps and verified drafts, against the reference and by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

pytest.importorskip("triton")

from octavo.kernels.cuda import step
from octavo.kernels.ops import SequenceState, StepInputs
from octavo.kernels.reference import step as reference

BLOCK_SIZE = 8
NOTHING = -77  # what buffers hold before


def _inputs(tokens: int, sequences: int, blocks: int, device: torch.device) -> StepInputs:
    def buffer(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full(shape, NOTHING, dtype=dtype, device=device)

    return StepInputs(
        token_ids=buffer(tokens, dtype=torch.int64),
        positions=buffer(tokens, dtype=torch.int64),
        slot_mapping=buffer(tokens, dtype=torch.int64),
        context_lengths=buffer(sequences, dtype=torch.int32),
        block_tables=buffer(sequences, blocks, dtype=torch.int32),
    )


@pytest.mark.parametrize(
    ("rows", "queries", "room"),
    [
        ((3, 0, 5), (1, 1, 1), 3),
        ((3, -1, 1, -1), (1, 1, 1, 1), 4),
        ((2, 4, -1), (300, 5, 0), 340),
        ((-1,), (0,), 2),
    ],
    ids=["decodes", "padded decodes", "a prompt, a draft and padding", "nothing but padding"],
)
def test_inputs_of_a_step(
    rows: Sequence[int], queries: Sequence[int], room: int, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(1)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator, dtype=torch.int32).to(device)

    state = SequenceState(
        token_ids=integers(1000, 6, 400),
        computed=torch.tensor([0, 7, 16, 90, 23, 8], dtype=torch.int32, device=device),
        block_tables=integers(10_000, 6, 50),
    )
    offsets = torch.tensor([0, *queries], device=device).cumsum(0).int()
    chosen = torch.tensor(rows, dtype=torch.int32, device=device)
    ours = _inputs(room, len(rows), 50, device)
    theirs = _inputs(room, len(rows), 50, device)
    step.build_step(state, chosen, offsets, ours, BLOCK_SIZE)
    reference.build_step(state, chosen, offsets, theirs, BLOCK_SIZE)
    for name in StepInputs.__dataclass_fields__:
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    at = 0
    for row, count in zip(rows, queries, strict=True):
        for i in range(count if row >= 0 else 0):
            position = int(state.computed[row]) + i
            assert ours.positions[at + i] == position
            assert ours.token_ids[at + i] == state.token_ids[row, position]
            block = int(state.block_tables[row, position // BLOCK_SIZE])
            assert ours.slot_mapping[at + i] == block * BLOCK_SIZE + position % BLOCK_SIZE
        at += count
    assert ours.slot_mapping[at:].eq(-1).all()


@pytest.mark.parametrize("provider", [step, reference], ids=["cuda", "reference"])
def test_a_chain_is_right_as_far_as_it_is_what_was_drawn(
    provider: object, device: torch.device
) -> None:
    cases = (
        ((5,), (9,), 0, 9),  # no draft
        ((5, 9, 4, 7), (9, 4, 7, 2), 3, 2),  # all right
        ((5, 9, 4, 7), (9, 3, 7, 2), 1, 3),  # what is right after a wrong one does not count
        ((5, 1, 4, 7), (9, 4, 7, 2), 0, 9),
    )
    tokens = [token for case in cases for token in case[0]]
    drawn = [token for case in cases for token in case[1]]
    offsets = torch.tensor([0, *(len(case[0]) for case in cases)], device=device).cumsum(0).int()
    accepted, last, path = provider.verify(  # type: ignore[attr-defined]
        torch.tensor(tokens, device=device), torch.tensor(drawn, device=device), offsets
    )
    assert accepted.tolist() == [case[2] for case in cases]
    assert last.tolist() == [case[3] for case in cases]
    assert path.tolist() == [0, 0, 1, 2, 3, 0, 1, -1, -1, 0, -1, -1, -1]


@pytest.mark.parametrize("provider", [step, reference], ids=["cuda", "reference"])
def test_a_tree_is_walked_from_its_root(provider: object, device: torch.device) -> None:
    #        5
    #     9     8        drawn after 5: 8; after 8: 3; after its 3: 6, which nobody drafted
    #    3     2 3
    tokens, parents = (5, 9, 8, 3, 2, 3), (-1, 0, 0, 1, 2, 2)
    drawn = (8, 3, 3, 1, 1, 6)
    twice = torch.tensor((*tokens, 7), device=device)
    accepted, last, path = provider.verify(  # type: ignore[attr-defined]
        twice,
        torch.tensor((*drawn, 4), device=device),
        torch.tensor([0, 6, 7, 7], dtype=torch.int32, device=device),
        torch.tensor((*parents, -1), dtype=torch.int32, device=device),
    )
    assert accepted.tolist() == [2, 0, 0]
    assert last.tolist()[:2] == [6, 4]
    assert path.tolist() == [0, -1, 1, -1, -1, 2, 0]
