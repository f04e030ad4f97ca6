"""A checkpoint folder small enough for any test: a Llama with random weights, computed for real."""

from __future__ import annotations

import json
from pathlib import Path

from octavo.engine.config import EngineConfig

VOCAB_SIZE = 96
MAX_LENGTH = 256
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": MAX_LENGTH,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}
BLOCK_BYTES = 2 * 2 * 16 * 2 * 8 * 4  # layers, keys and values, cells, heads, numbers, float32


def tiny_config(folder: Path, **settings: object) -> EngineConfig:
    """An engine over random weights; `settings` are fields of EngineConfig."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    given = {"dtype": "float32", "threads": 1, "kv_memory": 64 * BLOCK_BYTES, **settings}
    return EngineConfig(model=str(folder), load_format="dummy", **given)  # type: ignore[arg-type]
