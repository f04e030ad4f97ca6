"""Block `kernels`: every kernel against float64 or its definition, and the time each takes."""

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

from .ceilings import Ceilings, measure, seconds
from .report import Missing, Options, Report

ROOT = Path(__file__).resolve().parents[2]
LAYER = AttentionLayer(scale=0.1)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


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
    bench = _Bench(ops, device, ceilings, options.small, report)
    for work in (
        bench.rows,
        bench.decode,
        bench.prompt,
        bench.sampling,
        bench.products,
        bench.flash3,
    ):
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


class _Bench:
    """Times, as shares of what was measured to be possible."""

    def __init__(
        self, ops: Ops, device: torch.device, ceilings: Ceilings, small: bool, report: Report
    ) -> None:
        self._ops, self._device, self._ceilings = ops, device, ceilings
        self._small, self._report = small, report
        self._dtype = torch.float32 if small else torch.bfloat16

    def rows(self) -> None:
        for tokens in (4,) if self._small else (256, 4096):
            size = 64 if self._small else 4096
            x, residual, weight = (
                self._draw(tokens, size),
                self._draw(tokens, size),
                self._draw(size),
            )
            self._memory(
                f"rms_norm, {tokens} tokens",
                partial(self._ops.rms_norm, x, weight, 1e-6),
                2 * x.nbytes,
            )
            self._memory(
                f"add_rms_norm, {tokens} tokens",
                partial(self._ops.add_rms_norm, x, residual.float(), weight, 1e-6),
                2 * x.nbytes + 8 * x.numel(),
            )
            wide = self._draw(tokens, 2 * (96 if self._small else 14336))
            self._memory(
                f"silu_mul, {tokens} tokens",
                partial(self._ops.silu_mul, wide),
                wide.nbytes * 3 // 2,
            )

    def decode(self) -> None:
        """Llama-3.1-8B's heads."""
        for batch, context in (
            ((2, 40),)
            if self._small
            else ((1, 1024), (32, 1024), (64, 1024), (256, 1024), (1, 32768))
        ):
            plan, cache, query = self._paged(batch, 1, context)
            moved = 2 * batch * context * cache.shape[3] * cache.shape[4] * cache.element_size()
            self._memory(
                f"attention, {batch} decodes at {context}",
                partial(plan.attend, cache, query, LAYER),
                moved,
            )

    def prompt(self) -> None:
        tokens = 24 if self._small else 8192
        plan, cache, query = self._paged(1, tokens, tokens)
        took = seconds(lambda: plan.attend(cache, query, LAYER), self._device)
        flops = 2 * tokens * tokens * query.shape[1] * query.shape[2]  # causal: half of 4
        self._report.figure(
            f"attention, a prompt of {tokens}",
            flops / took / 1e12,
            "TFLOP/s",
            share=flops / took / self._ceilings.flops,
            of="the measured product",
        )

    def sampling(self) -> None:
        rows, columns = (2, 300) if self._small else (256, 151_936)
        logits = torch.randn(rows, columns, device=self._device)
        heat = torch.ones(rows, device=self._device)
        numbers = torch.arange(rows, device=self._device)
        self._memory(
            f"gumbel_argmax, {rows} rows",
            partial(self._ops.gumbel_argmax, logits, heat, numbers, numbers),
            logits.nbytes,
        )
        self._memory(
            f"largest 20, {rows} rows", partial(self._ops.largest, logits, 20), logits.nbytes
        )

    def products(self) -> None:
        """torch's products in the shapes of Llama-3.1-8B's gate and up."""
        inputs, outputs = (64, 96) if self._small else (4096, 28672)
        weight = self._draw(outputs, inputs)
        for rows in (1, 8) if self._small else (1, 32, 256, 2048):
            x = self._draw(rows, inputs)
            took = seconds(partial(F.linear, x, weight), self._device)
            if rows < 256:
                share = weight.nbytes / took / self._ceilings.bandwidth
                self._report.figure(
                    f"product of {rows} rows", took * 1e6, "us", share=share, of="the measured copy"
                )
            else:
                flops = 2 * rows * inputs * outputs / took
                self._report.figure(
                    f"product of {rows} rows",
                    flops / 1e12,
                    "TFLOP/s",
                    share=flops / self._ceilings.flops,
                    of="the measured product",
                )

    def flash3(self) -> None:
        """FlashAttention-3 on the same cells."""
        if importlib.util.find_spec("flash_attn_interface") is None:
            raise Missing("FlashAttention-3 (flash_attn_interface) is not installed")
        from flash_attn_interface import flash_attn_with_kvcache

        for batch, queries, context in ((32, 1, 1024), (256, 1, 1024), (1, 8192, 8192)):
            plan, cache, query = self._paged(batch, queries, context)
            ours = seconds(partial(plan.attend, cache, query, LAYER), self._device)
            theirs = seconds(
                lambda p=plan, c=cache, q=query, n=queries: flash_attn_with_kvcache(
                    q, c[:, 0], c[:, 1], cache_seqlens=p.context_lengths, page_table=p.block_tables,
                    cu_seqlens_q=p.query_offsets, max_seqlen_q=n, softmax_scale=0.1, causal=True,
                ),
                self._device,
            )  # fmt: skip
            kind = f"{batch} decodes" if queries == 1 else f"a prompt of {queries}"
            self._report.figure(f"attention against FlashAttention-3, {kind}", theirs / ours, "x")

    def _paged(self, batch: int, queries: int, context: int):
        heads, kv_heads, head_dim, block = (4, 2, 16, 16) if self._small else (32, 8, 128, 16)
        width = -(-context // block)
        cache = self._draw(batch * width, 2, block, kv_heads, head_dim)
        tables = torch.randperm(batch * width).view(batch, width).int().to(self._device)
        plan = self._ops.plan_attention(
            PagedSlices(
                query_offsets=(torch.arange(batch + 1) * queries).int().to(self._device),
                context_lengths=torch.full(
                    (batch,), context, dtype=torch.int32, device=self._device
                ),
                block_tables=tables,
                slot_mapping=torch.zeros(batch * queries, dtype=torch.int64, device=self._device),
                query_lengths=(queries,) * batch,
                context_lengths_host=(context,) * batch,
                block_size=block,
            )
        )
        return plan, cache, self._draw(batch * queries, heads, head_dim)

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self._device).to(self._dtype)

    def _memory(self, name: str, work, moved: int) -> None:  # noqa: ANN001
        took = seconds(work, self._device)
        share = moved / took / self._ceilings.bandwidth
        self._report.figure(name, took * 1e6, "us", share=share, of="the measured copy")
