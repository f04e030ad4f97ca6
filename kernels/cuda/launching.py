"""What every kernel's launch needs to know."""

from __future__ import annotations

from torch import Tensor

_ELEMENTS_PER_WARP = 256


def interpreted(tensor: Tensor) -> bool:
    """Whether a kernel on this tensor runs in Triton's interpreter: it lies in host memory.

    The interpreter is wrong about bfloat16 arithmetic (it computes with the bit patterns), so that
    kernels convert what they load to float32 at once when this is their `UPCAST`.
    """
    return tensor.device.type == "cpu"


def warps_for(elements: int) -> int:
    """A sensible number of warps for a program that works on so many elements at a time."""
    return max(1, min(8, elements // _ELEMENTS_PER_WARP))
