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
    windows: tuple[int | None, ...]  # per layer: how many tokens back it sees; None: all
    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    dtype: str = "float32"  # of the stored weights: float32 | bfloat16 | float16
    bos_token_id: int | None = None
    pad_token_id: int | None = None
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
    return _config(raw, generation, where=str(folder / "config.json"))


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


def _config(raw: Mapping[str, Any], generation: Mapping[str, Any], *, where: str) -> ModelConfig:
    architectures = raw.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise BrokenCheckpoint(f"{where} names no architecture in `architectures`.")
    model_class_path(architectures[0])  # an unknown one is said before anything else

    def number(key: str, default: int | None = None) -> int:
        value = raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise BrokenCheckpoint(f"{where} has {key} = {value!r} instead of a positive integer.")
        return value

    layers, heads = number("num_hidden_layers"), number("num_attention_heads")
    hidden_size = number("hidden_size")
    attention_bias = bool(raw.get("attention_bias", False))
    eos = generation.get("eos_token_id")
    return ModelConfig(
        architecture=architectures[0],
        hidden_size=hidden_size,
        intermediate_size=number("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", hidden_size // heads),
        vocab_size=number("vocab_size"),
        max_position_embeddings=number("max_position_embeddings", 2048),
        norm_epsilon=float(raw.get("rms_norm_eps", 1e-6)),
        activation=str(raw.get("hidden_act", "silu")),
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        rope=_rope(raw, where=where),
        windows=_windows(raw, layers, where=where),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch."),
        bos_token_id=raw.get("bos_token_id"),
        pad_token_id=raw.get("pad_token_id"),
        eos_token_ids=_ids(raw.get("eos_token_id") if eos is None else eos),
        sampling_defaults={
            field: generation[key]
            for key, field in _SAMPLING_FIELDS.items()
            if generation.get(key) is not None
        },
        raw=raw,
    )


def _rope(raw: Mapping[str, Any], *, where: str) -> Rope:
    """Both spellings: `rope_scaling` beside `rope_theta`, and the one dict `rope_parameters`."""
    stated = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(stated, dict) or any(isinstance(v, dict) for v in stated.values()):
        raise BrokenCheckpoint(f"{where} has rope parameters that octavo does not understand.")
    numbers = dict(stated)
    old_kind = numbers.pop("type", None)
    kind = str(numbers.pop("rope_type", None) or old_kind or "default")
    theta = numbers.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0
    outer = raw.get("original_max_position_embeddings")
    if outer is not None:
        numbers["original_max_position_embeddings"] = outer
    return Rope(kind=kind, theta=float(theta), numbers=numbers)


def _windows(raw: Mapping[str, Any], layers: int, *, where: str) -> tuple[int | None, ...]:
    """The window of each layer where `layer_types` spells it out; without it, none."""
    types = raw.get("layer_types")
    if types is None:
        return (None,) * layers
    if len(types) != layers:
        raise BrokenCheckpoint(f"{where} has {len(types)} layer_types for {layers} layers.")
    return tuple(raw.get("sliding_window") if t == "sliding_attention" else None for t in types)


def _ids(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)  # type: ignore[arg-type]
