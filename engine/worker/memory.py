"""How much goes to what, decided before the KV cache is allocated.

The host's memory is divided before anything is there, by estimates; a GPU's when the weights are,
by what was measured (`ledger.py`). What does not fit is refused at start-up, with what it needs,
what there is, and settings that would fit; nothing is found out by running out under load.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoint import ModelConfig
from ..config import EngineConfig
from ..errors import ConfigError, DoesNotFit
from .ledger import Ledger

# What `memory_utilization` is where it is not set, of the host's free memory and of a whole GPU.
_HOST_UTILIZATION = 0.5
GPU_UTILIZATION = 0.9
# Of what `memory_utilization` grants. The page cache that holds the checkpoint, the front end and
# other programs live in the same memory: with the default of 0.5 the KV cache takes a quarter.
_KV_SHARE = 0.5
# Of what large weights leave of the machine, where they leave little of what is granted.
_KV_REST = 0.25
_SCORE_BYTES = 64 << 20  # masks and scores of attention, prompt log-probabilities: bounded by tiles
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Sizes of the KV cache. One sequence of `max_model_len` always fits `num_blocks`."""

    num_blocks: int
    num_host_blocks: int
    max_model_len: int


def plan_memory(
    config: EngineConfig,
    model: ModelConfig,
    *,
    available: int,
    weights: int,
    activations: int,
    block: int,
    loading: int = 0,
) -> MemoryPlan:
    """Divide the memory.

    Args:
        available: bytes this process may take, the weights not being there yet.
        weights: bytes of the weights.
        activations: bytes of the largest step's temporaries (`activation_bytes`).
        block: bytes of one block in all layers.
        loading: bytes of the weights while they are read, where they are rounded afterwards.

    Raises:
        ConfigError: max_model_len is more than the checkpoint is made for.
        DoesNotFit: the weights, or one sequence of max_model_len, need more than there is.
    """
    if loading > available:
        raise DoesNotFit(
            f"The weights need {size(loading)} until they are rounded, but {size(available)} of "
            f"memory is free; use a smaller model or --dtype bfloat16."
        )
    fixed = weights + activations
    swap = config.swap_space // block * block
    granted = int(available * (config.memory_utilization or _HOST_UTILIZATION))
    if fixed + swap > available:
        raise DoesNotFit(
            f"The weights ({size(weights)}), one step's temporaries ({size(activations)}) and the "
            f"swap space ({size(swap)}) need {size(fixed + swap)}, but {size(available)} of memory "
            f"is free; use a smaller model, --dtype bfloat16, a smaller --max-num-batched-tokens, "
            f"or --swap-space 0."
        )
    if config.kv_memory is None:
        rest = available - fixed - swap
        budget = min(int(granted * _KV_SHARE), max(granted - fixed - swap, int(rest * _KV_REST)))
    else:
        budget = _given(
            config.kv_memory, fixed + swap, available, f" and the swap space ({size(swap)})"
        )
    return _divide(config, model, budget, most=available - fixed - swap, block=block)


def plan_device(
    config: EngineConfig, model: ModelConfig, ledger: Ledger, *, host_available: int, block: int
) -> MemoryPlan:
    """Divide what a GPU's ledger leaves; swapped blocks lie in the host's memory.

    Args:
        host_available: bytes of the host's memory that this process may take.
        block: bytes of one block in all layers.

    Raises:
        ConfigError: max_model_len is more than the checkpoint is made for.
        DoesNotFit: one sequence of max_model_len, or the swap space, needs more than there is.
    """
    if config.swap_space > host_available:
        raise DoesNotFit(
            f"--swap-space {setting(config.swap_space)} is page-locked memory of the host, of "
            f"which {size(host_available)} is free; --swap-space {setting(host_available)} would "
            f"fit."
        )
    most = max(0, ledger.free_at_start - ledger.fixed)
    budget = ledger.kv
    if config.kv_memory is not None:
        budget = _given(config.kv_memory, ledger.fixed, ledger.free_at_start, "")
    return _divide(config, model, budget, most=most, block=block)


def _given(kv_memory: int, fixed: int, available: int, and_more: str) -> int:
    """What --kv-memory says, if it can be had beside the rest."""
    if fixed + kv_memory > available:
        raise DoesNotFit(
            f"--kv-memory {size(kv_memory)} together with the weights and one step's temporaries"
            f"{and_more}, {size(fixed)} in all, is more than the {size(available)} of memory that "
            f"is free; --kv-memory {setting(available - fixed)} would fit."
        )
    return kv_memory


def _divide(
    config: EngineConfig, model: ModelConfig, budget: int, *, most: int, block: int
) -> MemoryPlan:
    """`budget` bytes in blocks. `most`: what there could be, with other settings."""
    longest = config.max_model_len or model.context_length
    if longest > model.context_length:
        raise ConfigError(
            f"--max-model-len {longest} is more than the {model.context_length} tokens this "
            f"checkpoint is made for; use --max-model-len {model.context_length}."
        )
    affordable = budget // block
    if config.max_model_len is None:
        longest = min(longest, affordable * config.block_size)
    per_sequence = -(-longest // config.block_size)
    if affordable < max(1, per_sequence):
        raise _too_long(longest, per_sequence, config, most, budget, block)
    return MemoryPlan(
        num_blocks=min(affordable, config.max_num_seqs * per_sequence),
        num_host_blocks=config.swap_space // block,
        max_model_len=longest,
    )


def _too_long(
    longest: int, blocks: int, config: EngineConfig, most: int, budget: int, block: int
) -> DoesNotFit:
    """What one sequence needs, what it has, and the settings that would fit."""
    need = max(1, blocks) * block
    ways = []
    if budget >= block:
        ways.append(f"--max-model-len {budget // block * config.block_size}")
    if need <= most:
        ways.append(f"--kv-memory {setting(need, up=True)}")
    advice = " or ".join(ways) + " would fit" if ways else "use a machine with more memory"
    return DoesNotFit(
        f"One sequence of {max(longest, config.block_size)} tokens needs {size(need)} of KV cache, "
        f"but {size(budget)} is set aside for it; {advice}."
    )


def activation_bytes(
    model: ModelConfig, *, tokens: int, sequences: int, draws: int, longest: int, itemsize: int
) -> int:
    """An upper estimate of what the engine allocates besides weights and KV cache.

    Args:
        tokens, sequences, draws: of the largest step.
        longest: tokens of the longest sequence.
        itemsize: bytes of a number.
    """
    # Projections, in float32 or before and after rotation, and what attention makes of them.
    heads = (3 * model.heads + 4 * model.kv_heads) * model.head_dim
    widest = max(heads, 3 * model.intermediate_size)
    per_token = (4 * model.hidden_size + widest) * itemsize
    gathered = 4 * longest * model.kv_heads * model.head_dim * itemsize  # keys and values, copied
    # Logits, their log-probabilities, noise and its integers, sort keys, and penalty counts.
    per_row = 32 * model.vocab_size
    histories = sequences * longest * 5  # the table of token ids, and that of blocks
    rotations = 2 * longest * model.head_dim * itemsize  # cosines and sines of positions
    return tokens * per_token + gathered + draws * per_row + histories + rotations + _SCORE_BYTES


def size(count: int) -> str:
    """Bytes for a reader: 1.5 GiB."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{max(0, count)} bytes"


def setting(count: int, *, up: bool = False) -> str:
    """Bytes as a setting's value, rounded down to a whole unit, or up: 1536MiB."""
    unit, name = (1 << 20, "MiB") if count >= 16 << 20 else (1 << 10, "KiB")
    return f"{-(-count // unit) if up else max(0, count) // unit}{name}"
