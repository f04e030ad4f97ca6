"""The seam between planning and compute: `Executor`, and the `Capacity` it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..params import SamplingParams
from ..step import StepOutput, StepPlan

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total) while starting; total 0 means unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """All that planning and the front end know of the model and the hardware."""

    num_blocks: int
    block_size: int
    num_host_blocks: int
    max_model_len: int
    vocab_size: int  # rows of the embedding: valid token ids are 0 .. vocab_size - 1
    eos_token_ids: tuple[int, ...]
    recompute_seconds_per_token: float  # measured at start
    swap_seconds_per_block: float  # one way, measured at start
    dtype: str
    device: str
    kv_bytes: int  # device memory of the KV cache
    weight_bytes: int
    parameters: int
    memory: dict[str, int] = field(default_factory=dict)  # bytes of the device, by what for
    itl_target_seconds: float = 0.0  # inter-token target that suits the device; 0: none
    max_num_seqs: int = 64  # where the configuration leaves it to the device ...
    max_num_batched_tokens: int = 2048  # ... as this
    longest_draft: int = 0  # tokens that are guessed at a time, at most; 0: none are
    most_draws: int = 2048  # of a step: one of each sequence, and one behind each guess
    overlap: int = 0  # steps that may be submitted ahead of the one whose output is awaited


class Executor(Protocol):
    """Carries plans out in the order they are submitted."""

    def start(self, progress: Progress) -> Capacity:
        """Load weights and allocate the KV cache.

        Raises:
            ConfigError: the checkpoint cannot be loaded, or it does not fit.
        """

    def ready(self, params: SamplingParams) -> bool:
        """Whether a sequence with these parameters would not keep a step waiting. If not, begins
        to prepare what is missing (its grammar is compiled) and returns without waiting for it.
        """

    def submit(self, plan: StepPlan) -> None:
        """Hand a plan over; returns without waiting for its result. `Capacity.overlap` more plans
        than have been collected may be handed over: such a plan names tokens that are not known
        yet, and the device reads them where it has them."""

    def collect(self) -> StepOutput:
        """Wait for the oldest submitted plan and return its output.

        A slice that fails alone carries its error in its result. An exception out of here means
        that the whole step failed.
        """

    def improve(self, *, idle: bool) -> bool:
        """Do one thing that makes later steps faster, if there is any and this is a good moment:
        between two steps, or `idle`, with nothing to compute. Returns whether more is left."""

    def stop(self) -> None:
        """Release everything; idempotent."""
