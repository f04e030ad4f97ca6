"""`--quantization int8 | int4`: float checkpoints, rounded when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from octavo.kernels.ops import Ops, PackedLinear
from octavo.kernels.reference.quantized import GROUPS

from .none import Unquantized

BITS: Mapping[str, int] = MappingProxyType({"int8": 8, "int4": 4})
_SCALE_BITS = 16


class Rounded(Unquantized):
    """Reads what `Unquantized` reads, and multiplies with fewer bits of it."""

    def __init__(self, ops: Ops, bits: int) -> None:
        super().__init__(ops)
        self._pack_quantized = ops.pack_quantized
        self._bits = bits

    def finish(self, tensors: dict[str, Tensor]) -> PackedLinear:
        return self._pack_quantized(tensors["weight"], tensors.get("bias"), self._bits)

    def head(self, weight: Tensor) -> PackedLinear:
        return self._pack_quantized(weight, None, self._bits)


def rounded_bytes(stored: int, *, left: int, quantization: str, itemsize: int) -> int:
    """What weights take when they have been rounded, their scales included.

    Args:
        stored: bytes of all weights before.
        left: bytes of those that stay as they are.
        quantization: as of `--quantization`; what is none of `BITS` rounds nothing here.
        itemsize: bytes of a number before.
    """
    bits = BITS.get(quantization)
    if bits is None:
        return stored
    shared = bits + _SCALE_BITS / GROUPS[bits]
    return left + int((stored - left) * shared / (8 * itemsize))
