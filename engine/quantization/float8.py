"""Floats of 8 bits: `--quantization fp8` for float checkpoints, and checkpoints that hold them.

Inputs are rounded as they come, a scale for each token, so that what a checkpoint says of the
inputs' scales is not needed. The vocabulary's matrix stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo.kernels.ops import Ops, PackedLinear

from ..errors import BrokenCheckpoint, ConfigError
from .base import InputOps, QuantTensor
from .none import Unquantized

_SIZE = 128  # of a side of the blocks that share a scale
_SCALES = ("weight_scale", "weight_scale_inv")
_LEFT_OUT = ("lm_head",)  # what a checkpoint may leave as it is: what we leave, too


def _inputs(ops: Ops) -> InputOps:
    return InputOps(add_rms_norm=ops.add_rms_norm_float8, silu_mul=ops.silu_mul_float8)


class Float8(Unquantized):
    """Reads what `Unquantized` reads, and rounds it."""

    def __init__(self, ops: Ops) -> None:
        super().__init__(ops)
        self.inputs = _inputs(ops)
        self._pack_float8 = ops.pack_float8

    def finish(self, tensors: dict[str, Tensor]) -> PackedLinear:
        weight = tensors["weight"]
        try:
            return self._pack_float8(weight, tensors.get("bias"), None, weight.dtype)
        except NotImplementedError as error:
            raise ConfigError(f"--quantization fp8: {error}") from None


class Float8Checkpoint(Unquantized):
    """Weights that were stored with 8 bits, and a scale for all, for each output, or for blocks.

    Args:
        blocks: a scale belongs to a square of weights; these become scales of outputs.
    """

    def __init__(self, ops: Ops, *, blocks: bool) -> None:
        super().__init__(ops)
        self.inputs = _inputs(ops)
        self._pack_float8 = ops.pack_float8
        self._blocks = blocks
        self._dtype = torch.bfloat16

    def parameters(
        self, inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> dict[str, QuantTensor]:
        self._dtype = dtype
        tensors = super().parameters(inputs, outputs, bias=bias, dtype=dtype, device=device)
        weight = torch.empty(outputs, inputs, dtype=torch.float8_e4m3fn, device=device)
        tensors["weight"] = QuantTensor(tensor=weight, output_axis=0, input_axis=1)
        if self._blocks:
            if outputs % _SIZE:
                raise BrokenCheckpoint(
                    f"The checkpoint has a scale for each {_SIZE} x {_SIZE} weights, but layers of "
                    f"{outputs} outputs together, which is no multiple of that."
                )
            shape = (outputs // _SIZE, -(-inputs // _SIZE))
        else:
            shape = (outputs, 1)
        scales = QuantTensor(
            tensor=torch.empty(shape, dtype=torch.float32, device=device),
            output_axis=0,
            input_axis=1 if self._blocks else None,
            outputs_per_cell=_SIZE if self._blocks else 1,
        )
        tensors[_SCALES[self._blocks]] = scales
        return tensors

    def finish(self, tensors: dict[str, Tensor]) -> PackedLinear:
        weight, scales = tensors["weight"], tensors[_SCALES[self._blocks]]
        given: Tensor | None = scales
        if self._blocks:
            wide = scales.repeat_interleave(_SIZE, 0).repeat_interleave(_SIZE, 1)
            weight, given = weight.float() * wide[:, : weight.shape[1]], None
        try:
            return self._pack_float8(weight, tensors.get("bias"), given, self._dtype)
        except NotImplementedError as error:
            raise ConfigError(f"The checkpoint's weights are floats of 8 bits: {error}") from None


def float8_checkpoint(stated: dict[str, Any], ops: Ops) -> Float8Checkpoint | None:
    """What reads a checkpoint with this `quantization_config`, or None where it is of another kind.

    Of "fp8" there are scales for whole matrices and for blocks; of "compressed-tensors", which can
    say many things, the floats of 8 bits with scales for matrices or outputs.

    Raises:
        BrokenCheckpoint: it has other blocks than we know, or leaves layers as they are.
    """
    method = stated.get("quant_method")
    blocks = False
    if method == "fp8":
        size = stated.get("weight_block_size")
        blocks = size is not None
        if size not in (None, [_SIZE, _SIZE]):
            raise BrokenCheckpoint(
                f"The checkpoint has a scale for each {size} weights; octavo reads {_SIZE} x "
                f"{_SIZE} only."
            )
        left_out = stated.get("modules_to_not_convert") or stated.get("ignored_layers") or []
    elif method == "compressed-tensors":
        groups = list((stated.get("config_groups") or {}).values())
        weights = [group.get("weights") or {} for group in groups]
        if not weights or any(
            w.get("num_bits") != 8
            or w.get("type") != "float"
            or w.get("strategy") not in ("tensor", "channel")
            for w in weights
        ):
            return None
        left_out = stated.get("ignore") or []
    else:
        return None
    if others := [name for name in left_out if name not in _LEFT_OUT]:
        raise BrokenCheckpoint(
            f"The checkpoint holds floats of 8 bits but leaves {', '.join(map(str, others[:3]))} "
            f"as they are; octavo reads such that leave lm_head only."
        )
    return Float8Checkpoint(ops, blocks=blocks)
