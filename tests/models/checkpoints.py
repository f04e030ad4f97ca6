"""Tiny random checkpoints, written by transformers as it writes big ones."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,  # ten times the usual: logits that differ
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True, slots=True)
class Family:
    """A model type of transformers, and what its config says besides `SMALL`."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    shard_size: str = "5GB"


def write_checkpoint(family: Family, folder: Path) -> PreTrainedModel:
    """Save a random model of this family in `folder`; returns it, in float32 and ready to run."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family.model_type](**{**SMALL, **family.config})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # transformers starts them all alike
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder, max_shard_size=family.shard_size)
    assert isinstance(model, PreTrainedModel)
    return model


def logits_of(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    """What transformers computes: token_ids [tokens] -> float32 [tokens, vocab]."""
    with torch.no_grad():
        logits = model(token_ids[None]).logits[0]
    assert isinstance(logits, Tensor)
    return logits


def edit_config(folder: Path, **changes: object) -> None:
    """Set keys of config.json; None removes one."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
