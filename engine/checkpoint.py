"""What a checkpoint folder says of itself: numbers, special ids, sampling defaults, shard names.

Reads the JSON files only and imports no torch, so the front end may use it; the weights themselves
are read by `engine/weights.py`. Every complaint is one sentence about one file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import BrokenCheckpoint, ModelNotFound
from .registry import model_class_path

# generation_config.json's names -> fields of SamplingParams
_SAMPLING_FIELDS = MappingProxyType(
    {
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repetition_penalty",
        "max_new_tokens": "max_tokens",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary positions as config.json states them; `engine/layers/rope.py` makes sense of them.

    `numbers` are the parameters of that kind of scaling (factor, beta_fast, long_factor, ...).
    """

    kind: str = "default"  # default | linear | dynamic | llama3 | yarn | longrope
    theta: float = 10000.0
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The numbers of a checkpoint, the same words for every architecture.

    What only one architecture knows it reads from `raw`, which is config.json as it stands.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int  # rows of the embedding
    max_position_embeddings: int
    norm_epsilon: float
    activation: str
    tied_embeddings: bool
    rope: Rope
    sliding_window: int | None = None  # as stated; which layers have it, the family knows
    layer_types: tuple[str, ...] = ()  # as stated, one per layer, or none
    windows: tuple[int | None, ...]  # per layer: how many tokens back it sees; None: all
    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    dtype: str = "float32"  # of the stored weights: float32 | bfloat16 | float16
    eos_token_ids: tuple[int, ...] = ()
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)  # SamplingParams fields
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def context_length(self) -> int:
        """Positions the model is made for, rope scaling included.

        Linear and yarn scaling stretch what config.json states; the other kinds state the result.
        """
        if self.rope.kind not in ("linear", "yarn"):
            return self.max_position_embeddings
        original = self.rope.numbers.get("original_max_position_embeddings")
        stretched = (original or self.max_position_embeddings) * self.rope.numbers.get("factor", 1)
        return max(self.max_position_embeddings, int(stretched))


def read_model_config(path: str | Path) -> ModelConfig:
    """What `config.json` and `generation_config.json` in the folder `path` say.

    End-of-sequence ids come from generation_config.json, else from config.json.

    Raises:
        ModelNotFound: there is no such folder.
        BrokenCheckpoint: config.json is missing, unreadable, or lacks a number we need.
        UnsupportedArchitecture: no model class computes it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelNotFound(f"There is no model folder {str(path)!r}.")
    raw = _read_json(folder / "config.json")
    if raw is None:
        raise BrokenCheckpoint(f"The folder {str(path)!r} has no config.json, so it is no model.")
    generation = _read_json(folder / "generation_config.json") or {}
    return _config(raw, generation, folder)


def weight_files(path: str | Path) -> tuple[Path, ...]:
    """The safetensors files that hold the weights in the folder `path`, each of them there.

    Raises:
        BrokenCheckpoint: there are none, a shard is missing, or only formats we refuse to read.
    """
    folder = Path(path)
    index_file = folder / "model.safetensors.index.json"
    index = _read_json(index_file)
    if index is not None:
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BrokenCheckpoint(f"{index_file} has no weight_map, so no shard can be found.")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).name != name:
                raise BrokenCheckpoint(f"{index_file} names {name!r}, which is not in its folder.")
            if not (folder / name).is_file():
                raise BrokenCheckpoint(
                    f"The shard {name} is missing in {folder}: {index_file.name} lists "
                    f"{len(names)} of them; download the model again."
                )
        return tuple(folder / name for name in names)
    files = tuple(sorted(folder.glob("*.safetensors")))
    single = folder / "model.safetensors"
    if single in files:
        return (single,)
    if not files:
        refused = sorted(
            {file.suffix for file in folder.iterdir()} & {".bin", ".pt", ".pth", ".gguf", ".h5"}
        )
        if refused:
            raise BrokenCheckpoint(
                f"{folder} has its weights as {', '.join(refused)} only, which octavo does not "
                f"read; convert them to safetensors."
            )
        raise BrokenCheckpoint(f"{folder} has no *.safetensors file, so there are no weights.")
    return files


def _read_json(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no such file."""
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenCheckpoint(f"{file} cannot be read: {error}.") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise BrokenCheckpoint(f"{file} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise BrokenCheckpoint(f"{file} is not a JSON object.")
    return content


class _Fields:
    """The keys of one config.json, each of the type it must have or a `BrokenCheckpoint`."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self._raw = raw
        self._where = where

    def wrong(self, what: str) -> BrokenCheckpoint:
        return BrokenCheckpoint(f"{self._where} {what}.")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.optional_integer(key)
        value = default if value is None else value
        if value is None:
            raise self.wrong(f"has no {key}")
        return value

    def optional_integer(self, key: str) -> int | None:
        value = self._raw.get(key)
        if value is None or (type(value) is int and value > 0):
            return value
        raise self.wrong(f"has {key} = {value!r} instead of a positive integer")

    def number(self, key: str, default: float) -> float:
        value = self._raw.get(key)
        value = default if value is None else value
        if type(value) not in (int, float) or value <= 0:
            raise self.wrong(f"has {key} = {value!r} instead of a positive number")
        return float(value)

    def strings(self, key: str) -> tuple[str, ...]:
        value = self._raw.get(key) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(f"has {key} = {value!r} instead of a list of names")
        return tuple(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self._raw.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(item) is int for item in ids):
            raise self.wrong(f"has {key} = {value!r} instead of token ids")
        return tuple(ids)

    def rope(self) -> Rope:
        """Both spellings: `rope_scaling` beside `rope_theta`, and `rope_parameters` alone."""
        stated = self._raw.get("rope_scaling") or self._raw.get("rope_parameters") or {}
        if not isinstance(stated, dict) or any(isinstance(v, dict) for v in stated.values()):
            raise self.wrong("has rope parameters that octavo does not understand")
        numbers = {key: value for key, value in stated.items() if value is not None}
        old_kind = numbers.pop("type", "default")
        kind = numbers.pop("rope_type", old_kind)
        theta = _Fields(numbers, self._where).number(
            "rope_theta", self.number("rope_theta", 10000.0)
        )
        numbers.pop("rope_theta", None)
        original = self.optional_integer("original_max_position_embeddings")
        if original is not None:
            numbers["original_max_position_embeddings"] = original
        for key, value in numbers.items():
            items = value if isinstance(value, list) else [value]
            if not all(isinstance(item, int | float) for item in items):
                raise self.wrong(f"has the rope parameter {key} = {value!r} instead of a number")
        return Rope(kind=str(kind), theta=theta, numbers=numbers)


def _config(raw: Mapping[str, Any], generation: Mapping[str, Any], folder: Path) -> ModelConfig:
    fields = _Fields(raw, str(folder / "config.json"))
    generation_fields = _Fields(generation, str(folder / "generation_config.json"))
    architectures = fields.strings("architectures")
    if not architectures:
        raise fields.wrong("names no architecture in `architectures`")
    model_class_path(architectures[0])  # an unknown one is said before anything else

    layers, heads = fields.integer("num_hidden_layers"), fields.integer("num_attention_heads")
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.wrong(f"has {heads} attention heads, which is no multiple of {kv_heads}")
    layer_types = fields.strings("layer_types")
    if layer_types and len(layer_types) != layers:
        raise fields.wrong(f"has {len(layer_types)} layer_types for {layers} layers")
    hidden_size = fields.integer("hidden_size")
    attention_bias = bool(raw.get("attention_bias", False))
    speaks = generation_fields if generation.get("eos_token_id") is not None else fields
    return ModelConfig(
        architecture=architectures[0],
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=fields.integer("head_dim", hidden_size // heads),
        vocab_size=fields.integer("vocab_size"),
        max_position_embeddings=fields.integer("max_position_embeddings", 2048),
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        activation=str(raw.get("hidden_act", "silu")),
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        rope=fields.rope(),
        sliding_window=fields.optional_integer("sliding_window"),
        layer_types=layer_types,
        windows=(None,) * layers,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch."),
        eos_token_ids=speaks.token_ids("eos_token_id"),
        sampling_defaults={
            ours: generation[theirs]
            for theirs, ours in _SAMPLING_FIELDS.items()
            if type(generation.get(theirs)) in (int, float)
        },
        raw=raw,
    )
