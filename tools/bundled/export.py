"""Writes a checkpoint as a folder that `transformers` (LlamaForCausalLM) and octavo load.

The target is split into two shards with an index, so that sharded loading is exercised on real
weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from bundled.model import Llama, Shape
from bundled.vocabulary import (
    BEGIN_OF_TEXT,
    BEGIN_OF_TEXT_ID,
    CHAT_TEMPLATE,
    END_OF_TEXT,
    END_OF_TEXT_ID,
    IM_END,
    IM_END_ID,
    IM_START,
    PAD,
    PAD_ID,
)

MAX_POSITIONS = 2048
END_IDS = [END_OF_TEXT_ID, IM_END_ID]


def export(model: Llama, tokenizer: Tokenizer, folder: Path, *, shards: int) -> None:
    """Writes weights (bf16), configuration and tokenizer to `folder`, replacing what was there."""
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_weights(weights_of(model), temporary, shards=shards)
    write_json(temporary / "config.json", configuration(model.shape))
    write_json(
        temporary / "generation_config.json",
        {"bos_token_id": BEGIN_OF_TEXT_ID, "eos_token_id": END_IDS, "pad_token_id": PAD_ID},
    )
    tokenizer.save(str(temporary / "tokenizer.json"), pretty=False)
    write_json(temporary / "tokenizer_config.json", tokenizer_configuration())
    write_json(temporary / "special_tokens_map.json", SPECIAL_ROLES)
    for file in temporary.iterdir():
        file.chmod(0o644)
    replace_folder(temporary, folder)


def weights_of(model: Llama) -> dict[str, Tensor]:
    """The weights in bf16, under the names of LlamaForCausalLM; the tied output is left out."""
    return {
        f"model.{name}": value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.named_parameters()
    }


def write_weights(weights: dict[str, Tensor], folder: Path, *, shards: int) -> None:
    """Writes one file, or `shards` files of about equal size with an index."""
    if shards == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return
    total = sum(value.nbytes for value in weights.values())
    parts: list[dict[str, Tensor]] = [{} for _ in range(shards)]
    before = 0
    for name, value in weights.items():
        parts[before * shards // total][name] = value
        before += value.nbytes
    index: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file_name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file_name, {"format": "pt"})
        index |= dict.fromkeys(part, file_name)
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))},
    )


def configuration(shape: Shape) -> dict[str, Any]:
    """The `config.json` of a network of `shape`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BEGIN_OF_TEXT_ID,
        "eos_token_id": END_IDS,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.mlp,
        "max_position_embeddings": MAX_POSITIONS,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": PAD_ID,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    }


SPECIAL_ROLES = {
    "bos_token": BEGIN_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "pad_token": PAD,
    "additional_special_tokens": [IM_START, IM_END],
}


def tokenizer_configuration() -> dict[str, Any]:
    """The `tokenizer_config.json`: roles of the special tokens and the chat template."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BEGIN_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "model_max_length": MAX_POSITIONS,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def replace_folder(new: Path, folder: Path) -> None:
    """Puts `new` in the place of `folder` with two renames."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
