"""What recomputing a token and swapping a block cost on this machine, measured at start: planning
weighs the one against the other when it preempts."""

from __future__ import annotations

import time

from ..kv_cache import KVCache
from ..params import SamplingParams
from ..step import History, Moves, Slice, Wants
from .computer import Computer
from .memory import MemoryPlan

_FIRST_TOKENS, _MORE_TOKENS = 8, 64  # computed to measure what a token costs
_QUICK_SECONDS = 0.05  # a model this quick with the first is asked for more
_SWAPPED_BLOCKS = 8


def seconds_per_token(computer: Computer, block_size: int, most: int) -> float:
    """What computing one token of a prompt costs, of at most `most`. Also the model's warm-up."""
    most = min(_MORE_TOKENS, most)

    def measure(tokens: int) -> float:
        prompt = (0,) * tokens
        blocks = tuple(range(-(-tokens // block_size)))
        history = History(
            params=SamplingParams(temperature=0.0), seed=0, prompt_length=tokens, token_ids=prompt
        )
        part = Slice(
            sequence=-1, start=0, count=tokens, wants=Wants.TOKEN, blocks=blocks, history=history
        )
        began = time.perf_counter()
        computer.compute([part])
        seconds = time.perf_counter() - began
        computer.forget((-1,))
        return seconds / tokens

    first = max(1, min(_FIRST_TOKENS, most))
    cost = measure(first)
    if cost * first < _QUICK_SECONDS and most > first:
        cost = measure(most)
    return cost


def seconds_per_swap(kv: KVCache, memory: MemoryPlan) -> float:
    """What moving one block to host memory costs; 0 where there is no room for any."""
    count = min(_SWAPPED_BLOCKS, memory.num_blocks, memory.num_host_blocks)
    if not count:
        return 0.0
    began = time.perf_counter()
    kv.apply(Moves(swap_out=tuple((block, block) for block in range(count))))
    kv.synchronize()
    return (time.perf_counter() - began) / count
