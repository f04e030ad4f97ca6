"""Attention in CUDA C++ without a GPU: its numbers on an emulated one, and its machine code.

What cannot be seen so is the launch through the driver, and how fast it is.
"""

from __future__ import annotations

import ctypes
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from octavo.kernels.cuda import native, nvrtc
from octavo.kernels.cuda.attention import SPLIT
from octavo.kernels.cuda.attention_kernels import merge_kernel
from octavo.kernels.ops import AttentionLayer

from ..paging import PLAIN, PagedStep, paged_step

HERE = Path(__file__).parent
TOOLS = Path(str(sys.modules["triton"].__file__)).parent / "backends" / "nvidia" / "bin"
# Head size, query heads of a kv head, whether contexts have several splits.
SHAPES = [(64, 1, False), (128, 4, True), (256, 8, False)]


def _emulated(folder: Path, *, head_dim: int, group: int, parts: bool) -> ctypes.CDLL:
    """The kernel as a function of this process, that runs a grid of it."""
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("there is no C++ compiler")
    shape = native.defines(
        head_dim=head_dim, group=group, block_size=16, parts=parts, dtype=torch.bfloat16
    )
    source = folder / "emulated.cpp"
    pointers = ("query", "cache", "out", "sums", "maxima", "totals", "tables", "contexts")
    numbers = "float scale, float softcap, int window, long long s0, long long s1, long long s2, "
    numbers += "long long s3, long long s4, long long s5, int heads, int splits"
    types = ["const Number*", "const Number*", "Number*", *["float*"] * 3, *["const int*"] * 2]
    declared = ", ".join(f"{t} {name}" for t, name in zip(types, pointers, strict=True))
    given = ", ".join((*pointers, *re.findall(r"(\w+)(?:,|$)", numbers)))
    source.write_text(
        f'#include "{HERE / "emulated.h"}"\n#include "{native.SOURCE}"\n'
        f'extern "C" void run(int x, int y, int z, {declared}, {numbers}) {{\n'
        f"  launch(x, y, z, kThreads, [&] {{ attend_decodes({given}); }});\n}}\n"
    )
    library = folder / "emulated.so"
    macros = [f"-D{name}={value}" for name, value in shape.items()]
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-w", *macros]
    subprocess.run([*command, "-x", "c++", source, "-o", library], check=True)
    return ctypes.CDLL(str(library))


def _run(
    library: ctypes.CDLL, step: PagedStep, *, window: int | None, softcap: float | None
) -> torch.Tensor:
    tokens, heads, head_dim = step.query.shape
    contexts = torch.tensor([context for _, context in step.slices], dtype=torch.int32)
    longest = int(contexts.max())
    splits = -(-longest // SPLIT)
    out = torch.full_like(step.query, float("nan"))
    sums = torch.full((tokens, heads, splits, head_dim), float("nan"))
    maxima, totals = torch.full((2, tokens, heads, splits), float("nan"))
    tensors = (step.query, step.cache, out, sums, maxima, totals, step.block_tables, contexts)
    strides = (step.query.stride(0), *(step.cache.stride(axis) for axis in range(4)))
    library.run(
        *(tokens, step.cache.shape[3], splits),
        *(ctypes.c_void_p(x.data_ptr()) for x in tensors),
        *(ctypes.c_float(number) for number in (head_dim**-0.5, softcap or 0.0)),
        longest if window is None else window,
        *(ctypes.c_longlong(s) for s in (*strides, step.block_tables.stride(0))),
        *(heads, splits),
    )
    if splits > 1:
        merge_kernel[(tokens * heads,)](
            sums, maxima, totals, out, splits, 1.0, HEAD_DIM=head_dim, BLOCK_D=head_dim
        )
    return out


@pytest.mark.parametrize(("head_dim", "group", "parts"), SHAPES)
def test_it_is_attention(head_dim: int, group: int, parts: bool, tmp_path: Path) -> None:
    lengths = (1, 33, 530) if parts else (1, 16, 45)
    step = paged_step(
        tuple((1, length) for length in lengths),
        heads=2 * group,
        kv_heads=2,
        head_dim=head_dim,
        block_size=16,
        dtype=torch.bfloat16,
    )
    blocks, offsets = step.slot_mapping // 16, step.slot_mapping % 16
    step.cache[blocks, 0, offsets] = step.new_keys
    step.cache[blocks, 1, offsets] = step.new_values
    library = _emulated(tmp_path, head_dim=head_dim, group=group, parts=parts)
    for window, softcap in ((None, None), (20, 3.0)):
        got = _run(library, step, window=window, softcap=softcap)
        expected = step.attended(scale=head_dim**-0.5, window=window, softcap=softcap)
        torch.testing.assert_close(got.double(), expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_it_compiles_without_a_spill(architecture: str, tmp_path: Path) -> None:
    if nvrtc.find_compiler() is None:
        pytest.skip("NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
    seen = {}
    for head_dim in native.HEAD_DIMS:
        for group in (1, 4, native.LARGEST_GROUP):
            for parts, dtype in ((False, torch.bfloat16), (True, torch.float16)):
                shape = native.defines(
                    head_dim=head_dim, group=group, block_size=16, parts=parts, dtype=dtype
                )
                file = tmp_path / "kernel.cubin"
                file.write_bytes(
                    nvrtc.compile_cubin(
                        native.SOURCE.read_text("utf-8"), architecture=architecture, defines=shape
                    )
                )
                told = subprocess.run(
                    [TOOLS / "cuobjdump", "--dump-resource-usage", file],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
                registers, stack, shared = map(
                    int, re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", told)[-1]
                )
                seen[f"{head_dim} {group} {dtype}"] = (registers, shared)
                assert stack == 0, f"{shape} spills"
                assert registers <= 255 and shared <= 48 << 10
    print(json.dumps(seen))


@pytest.mark.parametrize("parts", [False, True], ids=["whole", "parts"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_compiler_of_the_toolkit_has_nothing_to_say(
    architecture: str, parts: bool, tmp_path: Path
) -> None:
    if (compiler := shutil.which("nvcc")) is None:
        pytest.skip("nvcc is not installed")
    shape = native.defines(
        head_dim=256, group=native.LARGEST_GROUP, block_size=16, parts=parts, dtype=torch.float16
    )
    macros = [f"-D{name}={value}" for name, value in shape.items()]
    told = subprocess.run(
        [compiler, "-std=c++17", f"-arch={architecture}", "-Werror=all-warnings", "-Xptxas", "-v",
         *macros, "-cubin", native.SOURCE, "-o", tmp_path / "kernel.cubin"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in told.stderr


def test_what_the_compiler_says_is_told() -> None:
    if nvrtc.find_compiler() is None:
        with pytest.raises(nvrtc.CompilationFailed, match="no NVRTC library"):
            nvrtc.compile_cubin("", architecture="sm_90", defines={})
    else:
        with pytest.raises(nvrtc.CompilationFailed, match="nonsense"):
            nvrtc.compile_cubin("nonsense;", architecture="sm_90", defines={})


def test_triton_computes_what_there_is_no_kernel_for(
    device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    step = paged_step(((1, 9), (2, 12)), heads=4, kv_heads=2)
    with caplog.at_level(logging.WARNING):
        plan = step.plan(native.plan_attention)
    plan.store(step.cache, step.new_keys, step.new_values, PLAIN)
    got = plan.attend(step.cache, step.query, AttentionLayer(scale=0.25))
    expected = step.attended(scale=0.25, window=None, softcap=None)
    torch.testing.assert_close(got.double(), expected, atol=3e-6, rtol=3e-6)
    assert ("CUDA C++ is skipped" in caplog.text) == (nvrtc.find_compiler() is None)
