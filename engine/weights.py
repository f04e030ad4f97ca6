"""From a checkpoint folder to a model: each tensor is copied straight to where it is computed with.

Each tensor is mapped, cast and copied on its own into memory that is already the layer's (a part of
a merged one where layers are merged): the peak is the weights and one tensor. Nothing but
safetensors is read.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.kernels.ops import Ops
from octavo.kernels.registry import resolve

from .attention.choice import choose_attention
from .checkpoint import ModelConfig, read_model_config, weight_files
from .errors import BrokenCheckpoint, ConfigError
from .layers.blueprint import Blueprint
from .models.base import Model
from .quantization.base import QuantMethod
from .quantization.float8 import Float8, float8_checkpoint
from .quantization.none import Unquantized
from .quantization.rounded import BITS, Rounded
from .registry import model_class_path

STAGE = "loading weights"
RANDOM_STAGE = "making random weights"
_DRAWN = 1 << 22  # random numbers of a tensor; it repeats them where it is larger
_STORED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Tensors that older checkpoints hold and that follow from config.json, and scales of inputs, which
# are found as these come.
_DERIVED = (".rotary_emb.inv_freq", ".input_scale")
# Scales of a KV cache of 8 bits, as checkpoints name them, and their layer's own names.
_CACHE_SCALES = {".k_proj.k_scale": ".k_scale", ".v_proj.v_scale": ".v_scale"}


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    ops: Ops | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    load_format: str = "safetensors",
    quantization: str = "none",
    attention: str = "auto",
    kv_dtype: torch.dtype | None = None,
    longest: int | None = None,
) -> Model:
    """The model in the folder `path`, its weights cast to `dtype` on `device`.

    `longest`: tokens of the longest context, where it is less than the model is made for.
    `ops`: what it computes with; the best for `device` where not said.
    `attention`: one of the names of `attention/choice.py`. `kv_dtype`: the KV cache's, where it is
    not `dtype`.
    `load_format` "dummy" needs config.json only and gives random weights, the same each time.
    `progress` is called as progress(stage, bytes done, bytes in total).

    Raises:
        ConfigError: no model there, an unsupported one, or one that is broken or does not fit.
    """
    config = read_model_config(path)
    model_class = _model_class(config.architecture)
    ops = ops or resolve(device)
    numbers = model_class.config_from(config)
    backend = choose_attention(
        attention, ops=ops, device=device, dtype=dtype, config=numbers, kv_dtype=kv_dtype
    )
    blueprint = Blueprint(
        config=numbers,
        positions=longest or numbers.context_length,
        dtype=dtype,
        device=device,
        ops=ops,
        attention=backend,
        quantization=_quantization(quantization, numbers, ops),
        float8_cache=kv_dtype == torch.float8_e4m3fn,
    )
    model = model_class(blueprint)
    if load_format == "dummy":
        _fill_at_random(model, progress)
    elif load_format == "safetensors":
        _fill(model, weight_files(path), progress)
    else:
        raise ConfigError(
            f"--load-format {load_format} is not known; it must be safetensors or dummy."
        )
    model.finish()
    return model


def _model_class(architecture: str) -> type[Model]:
    module, _, name = model_class_path(architecture).partition(":")
    found: type[Model] = getattr(importlib.import_module(module), name)
    return found


def _quantization(name: str, config: ModelConfig, ops: Ops) -> QuantMethod:
    if quantized := config.raw.get("quantization_config"):
        stated = quantized if isinstance(quantized, dict) else {}
        method = stated.get("quant_method", "an unnamed method")
        reads = float8_checkpoint(stated, ops)
        if reads is None:
            raise BrokenCheckpoint(
                f"The checkpoint is quantized by {method}; octavo reads unquantized ones and those "
                f"of 8-bit floats only."
            )
        if name not in ("none", "fp8"):
            raise ConfigError(
                f"--quantization {name} rounds the weights of float checkpoints, but this one is "
                f"quantized by {method}; leave the setting out."
            )
        return reads
    if name == "none":
        return Unquantized(ops)
    if name == "fp8":
        return Float8(ops)
    if name not in BITS:
        known = ", ".join(("none", *BITS))
        raise ConfigError(f"--quantization {name} is not known; it must be {known} or fp8.")
    return Rounded(ops, BITS[name])


def _fill(model: Model, files: tuple[Path, ...], progress: Callable[[str, int, int], None]) -> None:
    """Copy every tensor of the files to its place, and see that none is missing or left over."""
    parameters = tuple(model.parameters())
    targets = {parameter.name: parameter.tensor for parameter in parameters}
    ignored = _DERIVED + (("lm_head.weight",) if model.config.tied_embeddings else ())
    if not any(name.endswith(".k_scale") for name in targets):
        ignored += (".k_scale", ".v_scale")  # the cache is not one of 8 bits
    missing = {parameter.name for parameter in parameters if not parameter.optional}
    extra = []
    done, total = 0, sum(file.stat().st_size for file in files)
    progress(STAGE, 0, total)
    for file in files:
        for stored_name in _names(file):
            name = _renamed(stored_name, model)
            if name.endswith(ignored):
                continue
            if name not in targets:
                extra.append(stored_name)
                continue
            done += _copy(file, stored_name, targets[name])
            missing.discard(name)
            progress(STAGE, done, total)
    if missing:
        raise BrokenCheckpoint(f"{files[0].parent} lacks {_some(missing)}.")
    if extra:
        raise BrokenCheckpoint(
            f"{files[0].parent} holds {_some(extra)}, which {model.config.architecture} with this "
            f"config.json does not have."
        )
    progress(STAGE, total, total)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A safetensors file, mapped; its header is checked against its length."""
    try:
        with safe_open(file, framework="pt", device="cpu") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        raise BrokenCheckpoint(
            f"{file} is cut short or damaged ({error}); download it again."
        ) from None


def _names(file: Path) -> list[str]:
    with _opened(file) as shard:
        return list(shard.keys())


def _copy(file: Path, name: str, target: Tensor) -> int:
    """Copy one tensor of a file to `target`; returns how many bytes it has in the file.

    The file is opened for each tensor, so that what was mapped for the one before is let go.
    """
    with _opened(file) as shard:
        stored: Tensor = shard.get_tensor(name)
        if name.endswith(".weight_scale") and stored.numel() == 1:
            stored = stored.view(1, 1).expand(target.shape)  # one scale for all outputs
        if name.endswith((".k_scale", ".v_scale")):
            stored = _positive_scale(file, name, stored)
        if stored.shape != target.shape:
            raise BrokenCheckpoint(
                f"{file} holds {name} as {list(stored.shape)}, but config.json makes it "
                f"{list(target.shape)}."
            )
        eight = target.dtype == torch.float8_e4m3fn
        if stored.dtype not in ((target.dtype,) if eight else _STORED):
            raise BrokenCheckpoint(
                f"{file} holds {name} as {str(stored.dtype).removeprefix('torch.')}, which is no "
                f"{'float of 8 bits (e4m3)' if eight else 'plain floating-point format'}."
            )
        target.copy_(stored)
        return stored.nbytes


def _positive_scale(file: Path, name: str, stored: Tensor) -> Tensor:
    """The one scale of all keys or values of a layer."""
    if stored.numel() != 1 or not 0 < float(stored) < float("inf"):
        raise BrokenCheckpoint(
            f"{file} holds {name} as {list(stored.shape)}; octavo stores the keys of a layer, and "
            f"its values, with one positive scale. --kv-cache-dtype auto does without."
        )
    return stored.reshape(())


def _renamed(name: str, model: Model) -> str:
    for ending, short in _CACHE_SCALES.items():
        if name.endswith(ending):
            name = name.removesuffix(ending) + short
    for theirs, ours in model.renames:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _some(names: set[str] | list[str]) -> str:
    """The first few of many names."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return f"the tensor{'s' if len(ordered) > 1 else ''} {', '.join(ordered[:3])}{rest}"


def _fill_at_random(model: Model, progress: Callable[[str, int, int], None]) -> None:
    """Small normals, norms of one: numbers that stay finite through any depth.

    The same on every device: they are drawn by the host, for a large tensor a part that is
    repeated, because drawing billions of them takes minutes.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    parameters = tuple(model.parameters())
    done, total = 0, sum(parameter.tensor.nbytes for parameter in parameters)
    progress(RANDOM_STAGE, 0, total)
    for parameter in parameters:
        if parameter.optional:
            continue
        if parameter.name.endswith("norm.weight"):
            parameter.tensor.fill_(1.0)
        else:
            _repeat_normals(parameter.tensor, generator)
        done += parameter.tensor.nbytes
        progress(RANDOM_STAGE, done, total)


def _repeat_normals(tensor: Tensor, generator: torch.Generator) -> None:
    """As many whole rows as `_DRAWN` allows are drawn, then the tensor is filled with them."""
    size = tensor[0].numel()
    rows = max(1, min(len(tensor), _DRAWN // size))
    drawn = torch.empty((rows, *tensor.shape[1:]), dtype=tensor.dtype)
    drawn.normal_(0.0, 0.02, generator=generator)
    drawn = drawn.to(tensor.device)
    for begin in range(0, len(tensor), rows):
        part = tensor[begin : begin + rows]
        part.copy_(drawn[: len(part)])
