"""Resolving ops: the best provider wins, and nothing is missing in silence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any

import pytest
import torch

from octavo.kernels import registry
from octavo.kernels.ops import Ops
from octavo.kernels.reference import norm

CPU = torch.device("cpu")


@pytest.fixture
def provide() -> Iterator[Callable[[str, dict[str, Callable[..., Any]]], None]]:
    """Install a provider module for the length of a test."""
    installed: list[str] = []

    def install(name: str, ops: dict[str, Callable[..., Any]]) -> None:
        module = ModuleType(f"octavo.kernels.{name}")
        vars(module)["OPS"] = ops
        sys.modules[module.__name__] = module
        installed.append(module.__name__)

    yield install
    for name in installed:
        del sys.modules[name]


def test_the_cpu_has_every_op() -> None:
    ops = registry.resolve(CPU)
    assert all(callable(getattr(ops, op.name)) for op in fields(Ops))
    assert set(registry.explain(CPU)) == {op.name for op in fields(Ops)}
    assert "missing" not in registry.explain(CPU).values()


def test_a_gpu_has_every_op_and_its_own_for_what_each_layer_does() -> None:
    pytest.importorskip("triton")
    explained = registry.explain(torch.device("cuda"))
    assert set(explained.values()) == {"cuda", "reference"}
    for op in ("rms_norm", "add_rms_norm", "silu_mul", "attend_projected", "gumbel_argmax"):
        assert explained[op] == "cuda"
    registry.resolve(torch.device("cuda"))


def test_a_deterministic_gpu_multiplies_and_attends_otherwise() -> None:
    pytest.importorskip("triton")
    gpu = torch.device("cuda")
    free = registry.explain(gpu)
    fixed = registry.explain(gpu, registry.providers_with(deterministic=True))
    changed = {op for op in free if free[op] != fixed[op]}
    assert changed == {"pack_linear", "pack_quantized", "pack_float8", "plan_attention"}
    assert {fixed[op] for op in changed} == {"cuda.deterministic"}


def test_the_first_provider_that_has_an_op_gives_it(
    provide: Callable[[str, dict[str, Callable[..., Any]]], None],
) -> None:
    def faster(*arguments: object) -> None: ...

    provide("fast", {"silu_mul": faster})
    providers = {"cpu": ("fast", "reference")}
    ops = registry.resolve(CPU, providers)
    assert ops.silu_mul is faster
    assert ops.rms_norm is norm.rms_norm
    explained = registry.explain(CPU, providers)
    assert (explained["silu_mul"], explained["rms_norm"]) == ("fast", "reference")


def test_an_op_that_nobody_has_is_named(
    provide: Callable[[str, dict[str, Callable[..., Any]]], None],
) -> None:
    provide("poor", {op.name: print for op in fields(Ops) if op.name != "rotate"})
    providers = {"cpu": ("poor",)}
    with pytest.raises(NotImplementedError, match=r"rotate on cpu; looked in poor"):
        registry.resolve(CPU, providers)
    assert registry.explain(CPU, providers)["rotate"] == "missing"


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"'meta', only for cpu, cuda"):
        registry.resolve(torch.device("meta"))


def test_a_gpu_computes_with_triton_and_what_it_lacks_with_torch() -> None:
    pytest.importorskip("triton")
    explained = registry.explain(torch.device("cuda"))
    assert set(explained.values()) == {"cuda", "reference"}
    assert explained["plan_attention"] == "cuda"
    assert explained["pack_linear"] == "reference"  # that is torch's own product: cuBLAS
