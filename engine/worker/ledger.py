"""`Ledger`: where a GPU's memory goes, and how much of it the KV cache may have.

The host's memory is divided by estimates before anything is allocated (`memory.py`). A GPU's is all
ours but for what others hold, and everything but the KV cache is there before that is sized: so
it is measured (`measuring.py`), and the arithmetic here is all that decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ..device import is_out_of_memory, release_memory
from ..errors import DoesNotFit

T = TypeVar("T")

_RESERVE = 256 << 20  # what nothing above is counted for: fragments, libraries' later whims
_RETRY_SHARE = 0.95  # of what is free, where an allocation failed against the sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Bytes of one GPU.

    What is taken never exceeds `utilization` of the whole card, nor what was free at the start: the
    rest is others'.
    """

    total: int
    free_at_start: int  # before anything of ours was there
    utilization: float
    weights: int
    activations: int  # at the peak of the largest step, with the heaviest sampler
    outside: int  # that torch's allocator does not know of: kernels, libraries' workspaces
    graphs: int  # an estimate: they are recorded when the server already answers
    reserve: int = _RESERVE

    @property
    def granted(self) -> int:
        return min(int(self.total * self.utilization), self.free_at_start)

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weights + self.activations + self.outside + self.graphs + self.reserve

    @property
    def kv(self) -> int:
        """What is left for the KV cache; 0 where the rest takes all."""
        return max(0, self.granted - self.fixed)

    def entries(self, kv: int) -> Mapping[str, int]:
        """Each part by name, for log and metrics, where the KV cache takes `kv`."""
        parts = {
            "weights": self.weights,
            "kv_cache": kv,
            "activations": self.activations,
            "outside_allocator": self.outside,
            "graphs_reserved": self.graphs,
            "reserve": self.reserve,
            "others": self.total - self.free_at_start,
        }
        return {**parts, "unused": self.total - sum(parts.values())}


def graph_bytes(
    *, layers: int, graphs: int, largest_tokens: int, step_tokens: int, peak: int, vocab_size: int
) -> int:
    """An estimate of what recorded graphs take.

    Their temporaries lie in one pool, as large as the largest graph's: a share of the `peak` of a
    step of `step_tokens`, and the logits of all its rows: as the product gives them, widened, and
    where they are left. Each graph also has its nodes in the driver: some twelve kernels a layer,
    each a few kilobytes. The estimate has not been compared with a GPU's figures yet.

    Args:
        largest_tokens: of the largest graph.
        peak: bytes of the largest step's activations.
    """
    if not graphs:
        return 0
    pool = peak * largest_tokens // max(1, step_tokens)
    logits = largest_tokens * vocab_size * _LOGIT_BYTES
    nodes = graphs * (_GRAPH_BYTES + layers * _LAYER_NODES * _NODE_BYTES)
    return min(pool, peak) + logits + nodes


_LOGIT_BYTES = 2 + 4 + 4
_GRAPH_BYTES = 1 << 20
_LAYER_NODES = 12
_NODE_BYTES = 16 << 10


def allocated(
    make: Callable[[int], T], blocks: int, *, block: int, least: int, free: Callable[[], int]
) -> tuple[T, int]:
    """What `make(blocks)` gives, or with fewer blocks where memory is missing against all sums.

    Args:
        block: bytes of one block.
        least: blocks that there must be.
        free: bytes that the device has now.

    Returns:
        What was made, and of how many blocks.

    Raises:
        DoesNotFit: not even `least` could be made.
    """
    for number in _attempts(blocks, block, least, free):
        try:
            return make(number), number
        except Exception as error:  # allocators have no exception in common
            if not is_out_of_memory(error):
                raise
        release_memory()
    raise DoesNotFit(
        f"The GPU has {free()} bytes free, and a KV cache for one sequence of full length needs "
        f"{least * block}; use a smaller --max-model-len or --max-num-batched-tokens, or stop what "
        f"else uses the GPU."
    )


def _attempts(blocks: int, block: int, least: int, free: Callable[[], int]) -> Iterator[int]:
    """First as planned, then once what is free now allows."""
    yield blocks
    fewer = min(blocks - 1, int(free() * _RETRY_SHARE) // block)
    if fewer >= least:
        yield fewer
