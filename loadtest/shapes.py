"""The shapes of the models that are measured: numbers only, as config.json writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One decoder with tied embeddings. `qk_norm` makes it Qwen3, else it is Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    rope_theta: float = 10_000.0
    max_positions: int = 8192
    qk_norm: bool = False

    @property
    def parameters(self) -> int:
        return sum(_volume(size) for _, size in self.tensors())

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and size of each tensor of the checkpoint, norms being the one-dimensional ones."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for layer in range(self.layers):
            inside = f"model.layers.{layer}."
            attention = inside + "self_attn."
            yield inside + "input_layernorm.weight", (self.hidden,)
            yield attention + "q_proj.weight", (query, self.hidden)
            yield attention + "k_proj.weight", (key, self.hidden)
            yield attention + "v_proj.weight", (key, self.hidden)
            yield attention + "o_proj.weight", (self.hidden, query)
            if self.qk_norm:
                yield attention + "q_norm.weight", (self.head_dim,)
                yield attention + "k_norm.weight", (self.head_dim,)
            yield inside + "post_attention_layernorm.weight", (self.hidden,)
            yield inside + "mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield inside + "mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield inside + "mlp.down_proj.weight", (self.hidden, self.intermediate)
        yield "model.norm.weight", (self.hidden,)

    def config(self) -> dict[str, object]:
        """The content of config.json."""
        return {
            "architectures": ["Qwen3ForCausalLM" if self.qk_norm else "LlamaForCausalLM"],
            "model_type": "qwen3" if self.qk_norm else "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.max_positions,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-6 if self.qk_norm else 1e-5,
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab,
        }


def _volume(size: tuple[int, ...]) -> int:
    product = 1
    for length in size:
        product *= length
    return product


SHAPES = {
    "tiny": Shape(
        hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=160, vocab=1024
    ),
    "15m": Shape(
        hidden=288, layers=6, heads=6, kv_heads=6, head_dim=48, intermediate=768, vocab=4096
    ),
    "bundled": Shape(
        hidden=384, layers=6, heads=6, kv_heads=2, head_dim=64, intermediate=1024, vocab=4096
    ),
    "110m": Shape(
        hidden=768, layers=12, heads=12, kv_heads=4, head_dim=64, intermediate=2048, vocab=32000
    ),
    "0.6b": Shape(  # Qwen3-0.6B
        hidden=1024,
        layers=28,
        heads=16,
        kv_heads=8,
        head_dim=128,
        intermediate=3072,
        vocab=151936,
        rope_theta=1e6,
        max_positions=32768,
        qk_norm=True,
    ),
}
