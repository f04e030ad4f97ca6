"""Which attention backend computes: decided here, once, and told in the log."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from octavo.kernels.ops import Ops
from octavo.kernels.registry import resolve

from ..checkpoint import ModelConfig
from ..device import capability_of
from ..errors import ConfigError
from . import flash3, flashinfer
from .base import AttentionBackend
from .paged import PagedAttention

log = logging.getLogger(__name__)

NAMES = ("auto", "triton", "flashinfer", "fa3", "torch")


def choose_attention(
    name: str,
    *,
    ops: Ops,
    device: torch.device,
    dtype: torch.dtype,
    config: ModelConfig,
    kv_dtype: torch.dtype | None = None,
) -> AttentionBackend:
    """The backend called `name`, one of `NAMES`; "auto" is the device's own kernel.

    `kv_dtype`: the cache's, where it is not `dtype`.

    Raises:
        ConfigError: the name is unknown, or it cannot compute this model here; the message says
            why and what can.
    """
    if name not in NAMES:
        raise ConfigError(
            f"--attention-backend {name} is not known; it must be {', '.join(NAMES[:-1])} or "
            f"{NAMES[-1]}."
        )
    on_gpu = device.type != "cpu"
    if name == "torch":
        told = "plain torch, by --attention-backend torch: right, and slow"
        backend: AttentionBackend = PagedAttention(resolve(device, {device.type: ("reference",)}))
    elif name in ("auto", "triton"):
        if name == "triton" and not on_gpu:
            raise _refused(name, f"it computes on GPUs, not on {device}")
        told = "Triton's paged attention" if on_gpu else "the CPU's own kernel"
        told += (
            ", the default of this device" if name == "auto" else f", by --attention-backend {name}"
        )
        wide = not on_gpu and kv_dtype in (None, dtype)
        backend = PagedAttention(ops, replayable=True, wide=wide)
    else:
        lack = _LACKS[name](device, dtype, config)
        if name == "fa3" and kv_dtype not in (None, dtype):
            lack = lack or "it reads a cache of 8 bits only for queries of 8 bits"
        if lack is not None:
            raise _refused(name, lack)
        told = f"{name}, by --attention-backend {name}; its steps are not replayed as graphs"
        backend = (
            flashinfer.FlashInferAttention(ops, device)
            if name == "flashinfer"
            else flash3.Flash3Attention(ops)
        )
    log.info("attention is computed by %s", told)
    return backend


def _refused(name: str, why: str) -> ConfigError:
    return ConfigError(f"--attention-backend {name}: {why}; use --attention-backend auto.")


def _lack_of_flashinfer(
    device: torch.device, dtype: torch.dtype, config: ModelConfig
) -> str | None:
    if device.type == "cpu":
        return f"it computes on GPUs, not on {device}"
    if importlib.util.find_spec(flashinfer.PACKAGE) is None:
        return "the package flashinfer-python is not installed"
    if config.head_dim not in flashinfer.HEAD_DIMS:
        known = ", ".join(map(str, flashinfer.HEAD_DIMS))
        return f"this model's heads have {config.head_dim} numbers, and it has kernels for {known}"
    return _lack_of_precision(dtype)


def _lack_of_flash3(device: torch.device, dtype: torch.dtype, config: ModelConfig) -> str | None:
    if device.type == "cpu":
        return f"it computes on GPUs, not on {device}"
    if importlib.util.find_spec(flash3.PACKAGE) is None:
        return "FlashAttention-3 (the module flash_attn_interface) is not installed"
    if capability_of(device)[0] != flash3.CAPABILITY:
        return f"it is made for GPUs of compute capability {flash3.CAPABILITY}.x"
    if config.head_dim > flash3.LARGEST_HEAD_DIM:
        return f"this model's heads have {config.head_dim} numbers, it takes up to 256"
    return _lack_of_precision(dtype)


def _lack_of_precision(dtype: torch.dtype) -> str | None:
    return "it computes in bfloat16 and float16 only" if dtype.itemsize != 2 else None


_Lack = Callable[[torch.device, torch.dtype, ModelConfig], str | None]
_LACKS: Mapping[str, _Lack] = MappingProxyType(
    {"flashinfer": _lack_of_flashinfer, "fa3": _lack_of_flash3}
)
