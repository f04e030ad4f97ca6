"""Which proposer drafts."""

from __future__ import annotations

from ..config import EngineConfig
from ..errors import ConfigError
from .base import Proposer
from .ngram import PromptLookup


def proposer_for(config: EngineConfig) -> Proposer | None:
    """The proposer that `config` asks for.

    Raises:
        ConfigError: its numbers contradict each other.
    """
    if config.speculative == "none":
        return None
    if config.prompt_lookup_min > config.prompt_lookup_max:
        raise ConfigError(
            f"--prompt-lookup-min {config.prompt_lookup_min} is more than --prompt-lookup-max "
            f"{config.prompt_lookup_max}; raise the one or lower the other."
        )
    return PromptLookup(
        most=config.num_speculative_tokens,
        shortest=config.prompt_lookup_min,
        longest=config.prompt_lookup_max,
    )
