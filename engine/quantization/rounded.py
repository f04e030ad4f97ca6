"""`--quantization int8 | int4`: float checkpoints, rounded when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from octavo.kernels.ops import Ops, PackedLinear

from .none import Unquantized

BITS: Mapping[str, int] = MappingProxyType({"int8": 8, "int4": 4})
# Of a weight, and its share of the 16 bits of a group's scale; a row's last group may be small.
_HELD_BITS: Mapping[str, float] = MappingProxyType({"int8": 8 + 16 / 256, "int4": 4 + 16 / 32})


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
    bits = _HELD_BITS.get(quantization)
    return stored if bits is None else left + int((stored - left) * bits / (8 * itemsize))
