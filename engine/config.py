"""What the engine is told at start: one frozen record, filled by `server/settings`.

Every number is concrete, or None, or 0 where nothing else can be meant by it, for "decide from
the checkpoint and the machine".
"""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_DRAFT = 15  # tokens: with the one before them a slice that is never cut in two


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything that shapes an engine. Sizes in bytes, lengths in tokens."""

    model: str  # a checkpoint folder; hub ids are resolved by the front end
    load_format: str = "safetensors"  # or "dummy": random weights from config.json
    dtype: str = "auto"  # auto | bfloat16 | float16 | float32
    quantization: str = "none"  # none | int8 | int4 | fp8: weights are rounded as they are loaded
    kv_cache_dtype: str = "auto"  # auto: the model's | fp8
    deterministic: bool = False  # a GPU's kernels, too, sum in an order that no neighbour changes
    enforce_eager: bool = False  # kernels are called one by one, never from a recording
    attention_backend: str = "auto"  # one of those of engine/attention/choice.py
    device: str = "auto"  # one of those of engine/device.py
    max_model_len: int | None = None  # None: what the checkpoint and the memory allow
    block_size: int = 16
    max_num_seqs: int = 0  # 0: what suits the device (engine/device.py)
    max_num_batched_tokens: int = 0  # the token budget of a step; 0: what suits the device
    kv_memory: int | None = None  # None: from memory_utilization
    # Share of the memory that octavo may take, weights included: on a CPU of what is free at start,
    # of which the KV cache gets at most half, and a little even where large weights take more
    # (engine/worker/memory.py); of the whole of a GPU. None: 0.5 on a CPU, 0.9 on a GPU.
    memory_utilization: float | None = None
    swap_space: int = 0  # host memory for swapped-out blocks; 0: preempt by recompute only
    # Seconds between two tokens of a stream that prompts may not make longer; 0: they may. None:
    # what suits the device.
    itl_target: float | None = None
    prefix_caching: bool = True
    scheduling_policy: str = "fcfs"  # or "priority"
    preemption: str = "auto"  # auto | recompute | swap
    overlap: str = "auto"  # auto | on | off: the next step is planned while one computes
    # Who guesses tokens that are verified together: none | ngram | auto, that where no answer
    # can change.
    speculative: str = "auto"
    num_speculative_tokens: int = 8  # 1 .. LONGEST_DRAFT, of a draft at most
    prompt_lookup_min: int = 3  # tokens that are looked for in what was said, at least ...
    prompt_lookup_max: int = 5  # ... and at most
    # What is to go wrong on purpose, in tests only (engine/faults/fault.py).
    test_fault: tuple[str, ...] = ()
    threads: int | None = None  # None: as many as there are cores, or one less
    pin_threads: bool = False  # tie each computing thread to a core of its own
    cpu_kernels: str = "auto"  # auto | reference | avx2 | avx512 | avx512_bf16

    @property
    def longest_draft(self) -> int:
        """Tokens of a draft at most; 0: nothing is guessed, or that is not settled yet."""
        return self.num_speculative_tokens if self.speculative == "ngram" else 0
