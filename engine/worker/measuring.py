"""What a step costs at most, measured by computing the largest one on a cache of a few blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from octavo.kernels.ops import Ops

from ..config import EngineConfig
from ..device import DeviceMemory, is_out_of_memory
from ..errors import DoesNotFit
from ..kv_cache import KVCache
from ..models.base import Model
from ..params import SamplingParams
from ..sampling.rules import standard_rules
from ..sampling.sampler import Sampler
from ..step import History, Slice, Wants
from ..transfer import Transfer
from .computer import Computer
from .halves import Compute
from .ledger import Ledger, graph_bytes
from .memory import GPU_UTILIZATION, size
from .padding import LARGEST, StaticBatch
from .resident import Resident
from .sequences import SequenceTable
from .stream import Stream

_HEAVY = SamplingParams(
    temperature=0.7,
    top_p=0.9,
    min_p=0.01,
    presence_penalty=0.5,
    frequency_penalty=0.5,
    repetition_penalty=1.1,
    logprobs=20,
    max_tokens=None,
)
_HEAVY_BEHIND_GUESSES = replace(  # where penalties apply nothing is guessed
    _HEAVY, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0
)


def largest_step(config: EngineConfig, longest: int) -> tuple[Slice, ...]:
    """As many sequences as may run, each wanting a token by the heaviest sampling there is, or with
    a draft several, and together as many tokens as a step may have. All of them lie in block 0:
    nobody reads it.

    Args:
        longest: tokens of the longest sequence.
    """
    most = max(1, longest - 1)
    least = min(most, 1 + config.longest_draft)
    rows = max(1, min(config.max_num_seqs, config.max_num_batched_tokens // least))
    left = min(config.max_num_batched_tokens, rows * most)
    slices = []
    for number in range(rows):
        # One long prompt first: its attention is the widest; then a token at least for each.
        count = min(most, left - (rows - number - 1) * least)
        left -= count
        draft = (0,) * min(config.longest_draft, count - 1)
        slices.append(_slice(-1 - number, count, config.block_size, draft))
    return tuple(slices)


def _slice(sequence: int, count: int, block_size: int, draft: tuple[int, ...]) -> Slice:
    known = (0,) * (count - len(draft))
    params = _HEAVY_BEHIND_GUESSES if draft else _HEAVY
    return Slice(
        sequence=sequence,
        start=0,
        count=count,
        wants=Wants.TOKEN,
        blocks=(0,) * -(-count // block_size),
        history=History(params=params, seed=0, prompt_length=len(known), token_ids=known),
        draft=draft,
    )


def measure_peak(
    memory: DeviceMemory, compute: Compute, step: Sequence[Slice], *, weights: int
) -> tuple[int, int]:
    """Bytes of the step's temporaries, as torch's allocator reserves them, and bytes in use that
    the allocator does not know of.

    Args:
        weights: bytes that are allocated already and stay.
    """
    memory.reset_peak()
    compute(step)
    peak = memory.peak()
    free, _ = memory.free_and_total()
    return max(0, peak - weights), max(0, memory.free_at_start - free - memory.reserved())


def take_stock(
    config: EngineConfig,
    model: Model,
    gpu: DeviceMemory,
    kv: KVCache,
    ops: Ops,
    transfer: Transfer,
    stream: Stream,
    *,
    graphs: int,
) -> Ledger:
    """Compute the largest step on a cache of one block, and see what it takes."""
    numbers = model.config
    longest = config.max_model_len or numbers.context_length
    step = largest_step(config, longest)
    rules = standard_rules(numbers.vocab_size, numbers.eos_token_ids, ops, rows=config.max_num_seqs)
    table = SequenceTable(rows=len(step), longest=longest, block_size=config.block_size)
    room = StaticBatch(
        rows=len(step),
        queries=1,
        longest=longest,
        block_size=config.block_size,
        device=model.device,
        room=config.max_num_batched_tokens,
    )
    computer = Computer(
        model=model,
        kv=kv,
        sampler=Sampler(numbers.vocab_size, rules, ops, unseen=True),
        table=table,
        inputs=Resident(table, config.block_size, transfer, ops.build_step, room),
        transfer=transfer,
        stream=stream,
    )
    gpu.reset_peak()
    weights = gpu.reserved()
    try:
        peak, outside = measure_peak(gpu, computer.compute, step, weights=weights)
    except Exception as error:  # allocators have no exception in common
        if not is_out_of_memory(error):
            raise
        raise DoesNotFit(
            f"The weights ({size(weights)}) leave too little of the GPU for a step of "
            f"{config.max_num_batched_tokens} tokens and {len(step)} sequences; use a smaller "
            f"model, --max-num-batched-tokens or --max-num-seqs."
        ) from None
    _, total = gpu.free_and_total()
    return Ledger(
        total=total,
        free_at_start=gpu.free_at_start,
        utilization=config.memory_utilization or GPU_UTILIZATION,
        weights=weights,
        activations=peak,
        outside=outside,
        graphs=graph_bytes(
            layers=numbers.layers,
            graphs=graphs,
            largest_tokens=min(config.max_num_seqs * (1 + config.longest_draft), LARGEST),
            step_tokens=config.max_num_batched_tokens,
            peak=peak,
            vocab_size=numbers.vocab_size,
        ),
    )
