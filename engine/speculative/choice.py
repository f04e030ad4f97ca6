"""Which proposer drafts, if any."""

from __future__ import annotations

from dataclasses import replace

from ..checkpoint import ModelConfig
from ..config import EngineConfig
from ..errors import ConfigError
from .base import Proposer
from .ngram import PromptLookup


def proposer_for(config: EngineConfig) -> Proposer | None:
    """The proposer that `config` asks for, when that is settled.

    Raises:
        ConfigError: its numbers contradict each other.
    """
    if config.prompt_lookup_min > config.prompt_lookup_max:
        raise ConfigError(
            f"--prompt-lookup-min {config.prompt_lookup_min} is more than --prompt-lookup-max "
            f"{config.prompt_lookup_max}; raise the one or lower the other."
        )
    if config.speculative != "ngram":
        return None
    return PromptLookup(shortest=config.prompt_lookup_min, longest=config.prompt_lookup_max)


def settled(
    config: EngineConfig, numbers: ModelConfig, *, gpu: bool, sums_alone: bool
) -> tuple[EngineConfig, str]:
    """A configuration in which "auto" is settled, and why it was so: guesses are made where no
    answer can change for them.

    Args:
        gpu: whether that is what computes.
        sums_alone: whether its kernels do what `registry.sums_alone` says.
    """
    if config.speculative != "auto":
        return config, "as was asked"
    floats = {"fp8"} & {config.quantization, config.kv_cache_dtype}
    name = "none"
    if gpu:
        reason = "on a GPU nobody has measured whether guesses pay"
    elif not sums_alone:
        reason = "sums of these kernels depend on what else is in a step"
    elif floats or numbers.raw.get("quantization_config"):
        reason = "sums of 8-bit floats depend on what else is in a step"
    else:
        name, reason = "ngram", "it changes no answer, and guesses where that pays"
    return replace(config, speculative=name), reason
