"""Block `kernels`: every kernel against float64 or its definition; then what each takes
(`kernel_times`)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tests.kernels.paging import PLAIN, PagedStep, paged_step
from torch import Tensor

from octavo.kernels import registry
from octavo.kernels.ops import AttentionLayer, Ops, PagedSlices

from .ceilings import measure
from .kernel_times import TOLERANCE, KernelTimes
from .report import Missing, Options, Report

ROOT = Path(__file__).resolve().parents[2]


def run(options: Options, report: Report) -> None:
    device = torch.device(options.device)
    ops = registry.resolve(device, {device.type: ("cuda", "reference")})
    ceilings = measure(device, small=options.small)
    report.figure("copy bandwidth", ceilings.bandwidth / 1e12, "TB/s")
    report.figure("bfloat16 product", ceilings.flops / 1e12, "TFLOP/s")
    dtypes = (torch.float32,) if options.small else (torch.float16, torch.bfloat16)
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        report.attempt(
            f"right: small kernels, {name}",
            partial(_small, ops, device, dtype, report, name),
        )
        report.attempt(
            f"right: attention, {name}",
            partial(_attention, ops, device, dtype, report, name),
        )
    report.attempt("right: tests of all kernels", lambda: _tests(options, report))
    for work in KernelTimes(ops, device, ceilings, options.small, report).all:
        report.attempt(f"times: {work.__name__}", work)


def _small(ops: Ops, device: torch.device, dtype: torch.dtype, report: Report, name: str) -> None:
    """Norms, rotation and activation against their formulas in float64."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def check(what: str, got: Tensor, expected: Tensor) -> None:
        error = float((got.double() - expected).abs().max() / expected.abs().max())
        report.check(f"{what}, {name}", error < TOLERANCE[dtype], f"relative error {error:.1e}")

    def normed(wide: Tensor, factor: Tensor) -> Tensor:
        return wide / (wide.pow(2).mean(-1, True) + 1e-5).sqrt() * factor.double()

    x, residual, weight = draw(5, 96), draw(5, 96), draw(96)
    total = x.double() + residual.double()
    held = residual.float()
    got = ops.add_rms_norm(x, held, weight, 1e-5)
    check("add_rms_norm's sum", held, total)
    check("add_rms_norm", got, normed(held.double(), weight))
    check("rms_norm", ops.rms_norm(x, weight, 1e-5), normed(x.double(), weight))
    gate_up = draw(3, 200)
    gate, up = gate_up.double().chunk(2, -1)
    check("silu_mul", ops.silu_mul(gate_up), F.silu(gate) * up)
    heads, cosine, sine = draw(4, 6, 64), draw(4, 1, 64), draw(4, 1, 64)
    turned = heads.double().roll(32, -1)
    check(
        "rotate",
        ops.rotate(heads, cosine, sine),
        heads.double() * cosine.double() + turned * sine.double(),
    )


def _attention(
    ops: Ops, device: torch.device, dtype: torch.dtype, report: Report, name: str
) -> None:
    """Mixtures of decodes, chunks and drafts against attention by its definition in float64."""
    for kind, slices in {
        "decodes": ((1, 7), (1, 530), (1, 1025)),
        "drafts": ((5, 40), (5, 600)),
        "mixed": ((37, 37), (1, 70), (20, 57)),
    }.items():
        step = paged_step(slices, heads=6, kv_heads=2, head_dim=64, block_size=16, dtype=dtype)
        got = _attended(ops, step, device)
        expected = step.attended(scale=0.125, window=None, softcap=None)
        error = float((got.double() - expected).abs().max())
        report.check(f"attention, {kind}, {name}", error < TOLERANCE[dtype], f"error {error:.1e}")


def _attended(ops: Ops, step: PagedStep, device: torch.device) -> Tensor:
    queries, contexts = zip(*step.slices, strict=True)
    plan = ops.plan_attention(
        PagedSlices(
            query_offsets=torch.tensor([0, *queries]).cumsum(0).int().to(device),
            context_lengths=torch.tensor(contexts, dtype=torch.int32).to(device),
            block_tables=step.block_tables.to(device),
            slot_mapping=step.slot_mapping.to(device),
            query_lengths=queries,
            context_lengths_host=contexts,
            block_size=step.cache.shape[2],
        )
    )
    cache = step.cache.to(device)
    plan.store(cache, step.new_keys.to(device), step.new_values.to(device), PLAIN)
    return plan.attend(cache, step.query.to(device), AttentionLayer(scale=0.125)).cpu()


def _tests(options: Options, report: Report) -> None:
    """The repository's own tests of the kernels, which compute on a GPU where there is one."""
    for package in ("pytest", "hypothesis"):
        if importlib.util.find_spec(package) is None:
            raise Missing(f"the package {package} is not installed")
    if options.small:
        raise Missing("`make test` runs them")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", "tests/kernels/cuda",
         "--deselect", "tests/kernels/cuda/test_compiling.py", "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=options.seconds * 0.6,
    )  # fmt: skip
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr[-300:]]
    report.check("right: tests of all kernels", done.returncode == 0, last[0])
