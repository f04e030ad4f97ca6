"""Which class computes which architecture: the one table a new model family adds a line to."""

from __future__ import annotations

from types import MappingProxyType

from .errors import UnsupportedArchitecture

# `architectures[0]` of config.json -> dotted module and class, imported when a model is loaded.
ARCHITECTURES = MappingProxyType(
    {
        "LlamaForCausalLM": "octavo.engine.models.llama:Llama",
        "MistralForCausalLM": "octavo.engine.models.mistral:Mistral",
        "Qwen2ForCausalLM": "octavo.engine.models.qwen2:Qwen2",
        "Qwen3ForCausalLM": "octavo.engine.models.qwen3:Qwen3",
    }
)


def model_class_path(architecture: str) -> str:
    """`module:class` of the model that computes `architecture`.

    Raises:
        UnsupportedArchitecture: there is none; the message lists what there is.
    """
    try:
        return ARCHITECTURES[architecture]
    except KeyError:
        raise UnsupportedArchitecture(
            f"The architecture {architecture!r} is not supported; supported are "
            f"{', '.join(sorted(ARCHITECTURES))}."
        ) from None
