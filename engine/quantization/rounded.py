"""`--quantization int8 | int4`: float checkpoints, rounded when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from octavo.kernels.ops import Ops, PackedLinear

from .none import Unquantized

BITS: Mapping[str, int] = MappingProxyType({"int8": 8, "int4": 4})
_HEAD_BITS = 8  # of the vocabulary's matrix, which 4 bits cost more in quality than they save


class Rounded(Unquantized):
    """Reads what `Unquantized` reads, and multiplies with fewer bits of it."""

    def __init__(self, ops: Ops, bits: int) -> None:
        super().__init__(ops)
        self._pack_quantized = ops.pack_quantized
        self._bits = bits

    def finish(self, tensors: dict[str, Tensor]) -> PackedLinear:
        return self._pack_quantized(tensors["weight"], tensors.get("bias"), self._bits)

    def head(self, weight: Tensor) -> PackedLinear:
        return self._pack_quantized(weight, None, _HEAD_BITS)
