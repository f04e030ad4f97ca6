"""All rules that shape logits, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.kernels.ops import Ops

from .logits import AllowedTokens, BadTokens, BadWords, LogitBias, LogitsRule, MinimumLength
from .penalties import Penalties


def standard_rules(
    vocab_size: int, stop_ids: Sequence[int], ops: Ops, *, rows: int = 0
) -> tuple[LogitsRule, ...]:
    """The order in which vLLM applies them: first what may not be said, then bias, then penalties.
    Temperature, min-p, top-k and top-p follow in the sampler.

    Args:
        vocab_size: columns of the logits; ids beyond are ignored.
        stop_ids: the model's end-of-sequence ids.
        rows: sequences that may run at the same time.
    """
    return (
        AllowedTokens(vocab_size),
        BadTokens(vocab_size),
        BadWords(vocab_size),
        MinimumLength(vocab_size, stop_ids),
        LogitBias(vocab_size),
        Penalties(vocab_size, ops, rows=rows),
    )
