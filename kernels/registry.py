"""Op x device -> implementation, resolved once, when a model is built.

Each device type has a list of providers, best first. A provider is a module of this package with a
mapping `OPS` from op name to function; the first that has an op gives it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

import torch

from .cpu.library import levels
from .ops import Ops


def providers_with(
    cpu_kernels: str = "auto", *, deterministic: bool = False
) -> Mapping[str, tuple[str, ...]]:
    """Each device's providers, best first; `reference` is pure torch and runs anywhere.

    `cpu_kernels`: a level of `cpu/build.py`, "auto" for the best this CPU has, or "reference".
    A GPU's are Triton's (`cuda/`), which is imported only when they are resolved.
    `deterministic`: what a sequence yields may depend on nothing else in the step, bitwise. On a
    CPU our own kernels are so anyway.

    Raises:
        NotImplementedError: the CPU lacks the instructions of that level.
    """
    own = tuple(f"cpu.{level}" for level in levels())
    if cpu_kernels == "reference":
        own = ()
    elif cpu_kernels == "auto":
        own = own[:1]
    elif f"cpu.{cpu_kernels}" in own:
        own = (f"cpu.{cpu_kernels}",)
    else:
        raise NotImplementedError(
            f"This CPU has no instructions for the kernels {cpu_kernels!r}, only for "
            f"{', '.join(('reference', *levels()))}."
        )
    fixed = ("cuda.deterministic",) if deterministic else ()
    return MappingProxyType({"cpu": (*own, "reference"), "cuda": (*fixed, "cuda", "reference")})


def resolve(device: torch.device, providers: Mapping[str, tuple[str, ...]] | None = None) -> Ops:
    """The best implementation of every op on `device`; `providers`: those of `providers_with()`.

    Raises:
        NotImplementedError: the device is unknown, or no provider of it has some op.
    """
    providers = providers or providers_with()
    chosen = _choose(device, providers)
    missing = [name for name, (_, function) in chosen.items() if function is None]
    if missing:
        raise NotImplementedError(
            f"No kernel for {', '.join(missing)} on {device.type}; looked in "
            f"{', '.join(providers[device.type])}."
        )
    functions: dict[str, Any] = {name: function for name, (_, function) in chosen.items()}
    return Ops(**functions)


def explain(
    device: torch.device, providers: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, str]:
    """Op name -> the provider that `resolve` takes it from, or "missing"."""
    providers = providers or providers_with()
    return {name: provider for name, (provider, _) in _choose(device, providers).items()}


def sums_alone(
    device: torch.device, providers: Mapping[str, tuple[str, ...]] | None = None
) -> bool:
    """Whether what a sequence yields depends, bitwise, on nothing else in the step: its products
    and its attention are of our own C++. What else sums treats each row by itself anywhere. It is
    not said of 8-bit floats, whose ops are the reference's on a CPU."""
    given = explain(device, providers)
    return all(given[op].startswith("cpu.") for op in _OF_SEVERAL_ROWS)


_OF_SEVERAL_ROWS = ("pack_linear", "pack_quantized", "plan_attention", "attend_projected")


def _choose(
    device: torch.device, providers: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, Callable[..., Any] | None]]:
    if device.type not in providers:
        raise NotImplementedError(
            f"There are no kernels for the device {device.type!r}, only for "
            f"{', '.join(sorted(providers))}."
        )
    chosen: dict[str, tuple[str, Callable[..., Any] | None]] = {}
    for op in fields(Ops):
        chosen[op.name] = ("missing", None)
        for provider in providers[device.type]:
            offered = importlib.import_module(f".{provider}", __package__).OPS
            if op.name in offered:
                chosen[op.name] = (provider, offered[op.name])
                break
    return chosen
