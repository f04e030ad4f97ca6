"""octavo: an OpenAI-compatible serving daemon for language models.

The public names are `LLM` (generate in this process), `SamplingParams` (what to generate) and
`__version__`. `LLM` is imported on first use, so that `import octavo` stays free of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .engine.params import SamplingParams
    from .server.offline import LLM

__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    if name == "LLM":
        from .server.offline import LLM

        return LLM
    if name == "SamplingParams":
        from .engine.params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")
