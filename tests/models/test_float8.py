"""Checkpoints of 8-bit floats, `--quantization fp8` and a KV cache of 8 bits, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.engine.errors import BrokenCheckpoint, ConfigError
from octavo.engine.weights import load_model
from octavo.kernels.ops import Float8Rows
from octavo.kernels.reference.float8 import Float8Linear

from .checkpoints import Family, edit_config, write_checkpoint
from .stepping import CPU, Stepper

FAMILY = Family(
    "llama",
    {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "num_hidden_layers": 2,
        "tie_word_embeddings": False,
        "initializer_range": 0.06,  # larger ones make rounding grow from layer to layer
    },
)
TOKENS = torch.tensor([5, 17, 3, 80, 41, 9, 2, 66, 30, 31])
SIDE = 128


def _scaled(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The weight over its scales, and the scales as a checkpoint of this kind holds them."""
    size = weight.abs()
    if kind == "channel":
        scales = size.amax(1, keepdim=True) / 448
        return weight / scales, scales
    if kind == "tensor":
        scale = size.amax() / 448
        return weight / scale, scale
    rows, columns = (length // SIDE for length in weight.shape)
    blocks = size.view(rows, SIDE, columns, SIDE).amax((1, 3)) / 448
    wide = blocks.repeat_interleave(SIDE, 0).repeat_interleave(SIDE, 1)
    return weight / wide, blocks


def _stated(kind: str) -> dict[str, Any]:
    if kind == "block":
        return {"quant_method": "fp8", "weight_block_size": [SIDE, SIDE]}
    if kind == "tensor":
        return {"quant_method": "fp8", "activation_scheme": "static"}
    weights = {"num_bits": 8, "type": "float", "strategy": "channel"}
    groups = {"group_0": {"weights": weights}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]}


def _write(folder: Path, kind: str) -> None:
    """A float checkpoint with its layers rounded to 8 bits, as tools write them."""
    write_checkpoint(FAMILY, folder)
    file = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(file).items():
        tensors[name] = tensor
        if name.endswith("_proj.weight"):
            numbers, scales = _scaled(tensor, kind)
            tensors[name] = numbers.clamp(-448, 448).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale{'_inv' if kind == 'block' else ''}"] = scales
            if kind == "tensor":
                stem = name.removesuffix(".weight")
                tensors[f"{stem}.input_scale"] = torch.tensor(0.1)
    save_file(tensors, file)
    edit_config(folder, quantization_config=_stated(kind))


def _logits(folder: Path, *, kv: torch.dtype = torch.float32, **settings: Any) -> Tensor:
    model = load_model(folder, dtype=torch.float32, device=CPU, kv_dtype=kv, **settings)
    stepper = Stepper(model, [TOKENS], dtype=kv)
    first = stepper.step({0: 7})[0]
    return torch.cat([first, *(stepper.step({0: 1})[0] for _ in range(3))])


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    folder = tmp_path_factory.mktemp("plain")
    write_checkpoint(FAMILY, folder)
    return _logits(folder)


@pytest.mark.parametrize("kind", ["tensor", "channel", "block"])
def test_a_checkpoint_of_8_bits_gives_nearly_what_it_was_made_of(
    kind: str, plain: Tensor, tmp_path: Path
) -> None:
    _write(tmp_path, kind)
    got = _logits(tmp_path)
    assert 1e-4 < _apart(got, plain) < 0.15
    assert torch.equal(got, _logits(tmp_path, quantization="fp8"))


def test_what_norms_and_gates_give_is_rounded_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what attention gives is left to be rounded by the product itself."""
    given: list[str] = []
    product = Float8Linear._product

    def watched(linear: Float8Linear, x: Tensor | Float8Rows) -> Tensor:
        given.append(type(x).__name__)
        return product(linear, x)

    monkeypatch.setattr(Float8Linear, "_product", watched)
    write_checkpoint(FAMILY, tmp_path)
    _logits(tmp_path, quantization="fp8")
    of_block = ["Float8Rows", "Tensor", "Float8Rows", "Float8Rows"]  # qkv, output, gate_up, down
    assert given == of_block * (len(given) // 4) and len(given) >= 8


@pytest.mark.parametrize("kind", ["channel", "block"])
def test_it_gives_what_the_same_numbers_as_floats_give(kind: str, tmp_path: Path) -> None:
    _write(tmp_path, kind)
    got = _logits(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    wide = {}
    for name, tensor in stored.items():
        if "_scale" in name:
            continue
        scales = stored.get(f"{name}_scale", stored.get(f"{name}_scale_inv"))
        wide[name] = tensor.float()
        if scales is not None:
            if kind == "block":
                scales = scales.repeat_interleave(SIDE, 0).repeat_interleave(SIDE, 1)
            wide[name] = tensor.float() * scales
    save_file(wide, file)
    edit_config(tmp_path, quantization_config=None)
    assert _apart(_logits(tmp_path, quantization="fp8"), got) < 1e-5


def test_float_checkpoints_are_rounded_when_asked(plain: Tensor, tmp_path: Path) -> None:
    write_checkpoint(FAMILY, tmp_path)
    assert 1e-4 < _apart(_logits(tmp_path, quantization="fp8"), plain) < 0.15


def test_a_cache_of_8_bits(plain: Tensor, tmp_path: Path) -> None:
    write_checkpoint(FAMILY, tmp_path)
    assert 1e-4 < _apart(_logits(tmp_path, kv=torch.float8_e4m3fn), plain) < 0.15


def _with_large_keys(folder: Path, names: tuple[str, str], scale: Tensor | None) -> None:
    """A checkpoint like `FAMILY`'s, but its keys and values are large, queries and outputs small in
    turn; `scale`, under these names, is that of keys and values of a cache of 8 bits."""
    write_checkpoint(FAMILY, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    factors = {"k_proj": 2000.0, "v_proj": 2000.0, "q_proj": 1 / 2000, "o_proj": 1 / 2000}
    for name in tensors:
        for part, factor in factors.items():
            if f".{part}.weight" in name:
                tensors[name] = tensors[name] * factor
    if scale is not None:
        for layer in range(2):
            prefix = f"model.layers.{layer}.self_attn."
            tensors |= {f"{prefix}{name}": scale.clone() for name in names}
    save_file(tensors, file)


@pytest.mark.parametrize(
    "names", [("k_scale", "v_scale"), ("k_proj.k_scale", "v_proj.v_scale")], ids=["own", "nested"]
)
def test_scales_of_a_cache_of_8_bits_are_the_checkpoints(
    names: tuple[str, str], plain: Tensor, tmp_path: Path
) -> None:
    eight = torch.float8_e4m3fn
    _with_large_keys(tmp_path, names, None)
    assert _apart(_logits(tmp_path, kv=eight), plain) > 0.3  # they do not fit
    _with_large_keys(tmp_path, names, torch.tensor(20.0))
    assert 1e-4 < _apart(_logits(tmp_path, kv=eight), plain) < 0.15
    assert _apart(_logits(tmp_path), plain) < 1e-4  # another cache has no use for them
    for odd in (torch.zeros(1), torch.ones(4)):
        _with_large_keys(tmp_path, names, odd)
        with pytest.raises(BrokenCheckpoint, match=r"_scale as \[.\]; .* one positive scale"):
            _logits(tmp_path, kv=eight)


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    _write(tmp_path, "channel")
    with pytest.raises(ConfigError, match=r"--quantization int8 rounds .* compressed-tensors"):
        _logits(tmp_path, quantization="int8")
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    for change, why in (
        ({"ignore": ["lm_head", "model.layers.0.mlp.up_proj"]}, r"leaves model\.layers\.0"),
        ({"config_groups": {}}, "quantized by compressed-tensors; octavo reads"),
    ):
        edit_config(tmp_path, quantization_config=config | change)
        with pytest.raises(BrokenCheckpoint, match=why):
            _logits(tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": [64, 1]})
    with pytest.raises(BrokenCheckpoint, match="128 x 128 only"):
        _logits(tmp_path)
    file = tmp_path / "model.safetensors"
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(load_file(file) | {name: torch.zeros(256, 128)}, file)
    edit_config(tmp_path, quantization_config=config)
    with pytest.raises(BrokenCheckpoint, match=r"up_proj.weight as float32, .* of 8 bits"):
        _logits(tmp_path)
