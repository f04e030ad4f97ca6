"""Compile each kernel ahead of time, as its launcher would.

    python compile_all.py CAPABILITY [PART OF A VARIANT'S NAME]

Prints JSON: variant -> registers, stack bytes (spills), shared bytes, whether it has wgmma.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from octavo.kernels.cuda import (
    activation,
    attention,
    cache,
    float8,
    matmul,
    norm,
    projected,
    quantized,
    rope,
    sampling,
    search,
    selection,
    shaping,
    step,
)
from octavo.kernels.cuda import attention_kernels as kernels
from octavo.kernels.reference.quantized import GROUPS

_ALIGNED = [["tt.divisibility", 16]]
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

Variant = tuple[str, Any, dict[str, str], dict[str, Any]]
"""Name, kernel, types of its arguments, and by keyword what a launch gives: constants, options."""


def variants() -> Iterator[Variant]:
    """What the launchers launch, for the shapes of the models we know."""
    for dtype in ("bf16", "fp16"):
        yield from _attention(dtype)
        yield from _projected(dtype)
        for add, of, of_8 in (
            (False, dtype, False),
            (True, dtype, False),
            (True, "fp32", False),
            (True, dtype, True),
        ):
            types = {"x": f"*{of}", "residual": "*fp32", "weight": f"*{dtype}", "scales": "*fp32"}
            types |= {"x_stride": "i32", "size": "i32", "epsilon": "fp32"}
            types |= {"out": "*u8" if of_8 else f"*{dtype}"}
            given = {"ADD": add, "FLOAT8": of_8, "BLOCK": 8192, "UPCAST": False, "num_warps": 8}
            name = f"norm {dtype} add={add} of {of} float8={of_8}"
            yield name, norm.rms_norm_kernel, types, given
        yield from _matmul(dtype)
        types = {
            "x": f"*{dtype}",
            "out": "*u8",
            "scales": "*fp32",
            "x_stride": "i32",
            "size": "i32",
        }
        given = {"BLOCK": 16384, "num_warps": 8}
        yield f"round rows {dtype}", float8.round_rows_kernel, types, given
        types = {"gate_up": f"*{dtype}", "out": f"*{dtype}", "size": "i32"}
        yield f"silu_mul {dtype}", activation.silu_mul_kernel, types, {"BLOCK": 1024}
        types |= {"out": "*u8", "scales": "*fp32"}
        given = {"BLOCK": activation.ROW_BLOCK, "num_warps": activation.ROW_WARPS}
        yield f"silu_mul float8 {dtype}", activation.silu_mul_float8_kernel, types, given
        types = dict.fromkeys(("x", "cosine", "sine", "out"), f"*{dtype}")
        types |= {"x_token": "i32", "x_head": "i32", "heads": "i32"}
        given = {"HEAD_DIM": 128, "ROTARY": 128, "BLOCK_H": 16, "BLOCK_D": 128, "num_warps": 8}
        yield f"rotate {dtype}", rope.rotate_kernel, types, given
    types = {"query_offsets": "*i32", "tiles": "*i32", "sequences": "i32", "count": "i32"}
    types |= {"step": "i32"}
    yield "tiles", kernels.tiles_kernel, types, {"BLOCK": 256, "num_warps": 1}
    yield from _step()
    yield from _sampling()
    yield from _quantized()
    types = {"source": "*u8", "target": "*u8", "from_index": "*i64", "to_index": "*i64"}
    types |= {"size": "i32"}
    for gather, scatter in ((True, False), (False, True)):
        given = {"GATHER": gather, "SCATTER": scatter, "BLOCK": 4096}
        yield f"move gather={gather}", cache.move_blocks_kernel, types, given


def _matmul(dtype: str) -> Iterator[Variant]:
    types = dict.fromkeys(("x", "weight", "bias", "out"), f"*{dtype}")
    integers = ("rows", "outputs", "inputs", "x_stride", "weight_stride")
    types |= dict.fromkeys(integers, "i32")
    for rows in (1, 512):
        tile = matmul.tile_rows(rows)
        shape = {"ROWS": tile, "OUTPUTS": 128, "INPUTS": 64, "BAND": 8}
        shape |= {"num_warps": matmul.WARPS, "num_stages": 3}
        for wide in (False, True):
            given = {**shape, "BIASED": not wide, "UPCAST": False}
            with_out = types | ({"out": "*fp32"} if wide else {})
            name = f"matmul of prompt {dtype} tile={tile} wide={wide}"
            yield name, matmul.matmul_kernel, with_out, given


def _step() -> Iterator[Variant]:
    narrow = ("known", "computed", "tables", "rows", "query_offsets", "contexts", "step_tables")
    types = dict.fromkeys((*narrow, "parents", "accepted", "path"), "*i32")
    types |= dict.fromkeys(("token_ids", "positions", "slots", "drawn", "last"), "*i64")
    strides = ("known_stride", "computed_stride", "table_stride", "step_stride")
    integers = (*strides, "sequences", "tokens")
    types |= dict.fromkeys(integers, "i32")
    yield "build_step", step.build_step_kernel, types, {"BLOCK_SIZE": 16, "BLOCK": 256}
    for tree in (False, True):
        given = {"TREE": tree, "num_warps": 1}
        yield f"verify tree={tree}", step.verify_kernel, types, given


def _sampling() -> Iterator[Variant]:
    floats = ("values", "logits", "temperature", "top_p", "min_p", "taken", "masses", "limits")
    floats += ("best", "largest", "highest", "presence", "frequency", "repetition", "out")
    types = dict.fromkeys(floats, "*fp32") | {"prompt_seen": "*u8"}
    wide = ("seeds", "positions", "token_ids", "place", "chosen", "top_k")
    types |= dict.fromkeys(wide, "*i64")
    narrow = ("places", "sizes", "last_places", "partials", "output_counts", "bitmask")
    types |= dict.fromkeys(narrow, "*i32")
    types |= dict.fromkeys(("row_stride", "mask_stride", "columns", "parts", "count"), "i32")
    for named, narrowed in ((False, False), (True, False), (False, True)):
        given = {"NAMED": named, "NARROWED": narrowed, "BLOCK": 2048}
        yield f"draw named={named} narrowed={narrowed}", sampling.draw_kernel, types, given
    yield "choose", sampling.choose_kernel, types, {"PARTS": 128, "num_warps": 1}
    for draw in (False, True):
        shared = {"DRAW": draw, "MOST": search.MOST}
        yield f"search draw={draw}", search.search_kernel, types, shared | selection.SEARCH
        in_order = types | {"columns": "*i64"}
        yield f"settle draw={draw}", search.settle_kernel, in_order, shared | selection.SETTLE
    yield "rank", selection.rank_kernel, types, {"PART": 4096, "num_warps": 8}
    given = {"BLOCK": 1024, "enable_fp_fusion": False}
    yield "penalise", shaping.penalise_kernel, types, given
    yield "allow only", shaping.allow_only_kernel, types, {"BLOCK": 1024}


def _quantized() -> Iterator[Variant]:
    for dtype in ("bf16", "fp16", "fp32"):
        types = {"x": f"*{dtype}", "out": "*fp16", "scales": "*fp32", "x_stride": "i32"}
        types |= dict.fromkeys(("out_stride", "inputs", "groups"), "i32")
        given = {"GROUP": GROUPS[8], "num_warps": 1, "enable_fp_fusion": False}
        yield f"round groups {dtype}", quantized.round_groups_kernel, types, given
        types = {"x": "*fp16", "x_scales": "*fp32", "values": "*u8", "scales": "*bf16"}
        types |= {"bias": "*bf16", "out": f"*{dtype}"}
        types |= dict.fromkeys(("rows", "inputs", "outputs", "groups"), "i32")
        for bits, group in GROUPS.items():
            for rows in (1, 512):
                tile, warps = quantized.tile_rows(rows)
                given = {"ROWS": tile, "OUTPUTS": 64, "GROUP": group, "FOUR": bits == 4}
                given |= {"PART": min(group, quantized.PART), "BIASED": True}
                given |= {"num_warps": warps, "enable_fp_fusion": False}
                name = f"product of {bits} bits {dtype} tile={tile}"
                yield name, quantized.product_kernel, types, given


def _attention(dtype: str) -> Iterator[Variant]:
    types = dict.fromkeys(("query", "cache", "out", "key", "value"), f"*{dtype}")
    types |= dict.fromkeys(("part_sum", "part_max", "part_total"), "*fp32")
    whole = ("block_tables", "context_lengths", "query_offsets", "tiles")
    types |= dict.fromkeys(whole, "*i32")
    types |= {"slots": "*i64", "tree_masks": "*i64"}
    types |= dict.fromkeys(("scale", "softcap", "value_scale"), "fp32")
    types |= dict.fromkeys(("key_inverse", "value_inverse"), "fp32")
    integers = ("window", "table_stride", "heads", "splits", "size", "half_stride")
    strides = ("query", "key", "value", "block", "cell", "head")
    types |= dict.fromkeys((*integers, *(f"{name}_stride" for name in strides)), "i32")
    # Whether a tile holds a sequence or part of a prompt, splits are parts, and they are fixed.
    ways = [
        ("decode", False, False),
        ("decode", True, False),
        ("prompt", False, False),
        ("decode", True, True),
        ("prompt", False, True),
    ]
    for head_dim, group in ((64, 4), (80, 4), (96, 4), (128, 4), (128, 7), (256, 4)):
        columns = triton.next_power_of_2(head_dim)
        for kind, parts, fixed in ways:
            # What float16 changes is the instruction, not how many registers are needed.
            for extra in ("", "capped", "tree", "float8") if dtype == "bf16" else ("",):
                few, float8 = kind == "decode", extra == "float8"
                shape = attention.tile_shape(columns, few=few, fixed=fixed, float8=float8)
                given = {
                    "GROUP": group,
                    "HEAD_DIM": head_dim,
                    "BLOCK_D": columns,
                    "ROWS": shape.rows,
                    "CELLS": shape.cells,
                    "BLOCK_SIZE": 16,
                    "SPLIT": attention.SPLIT,
                    "CAPPED": extra == "capped",
                    "PARTS": parts,
                    "TILED": kind == "prompt",
                    "TREE": extra == "tree",
                    "KEEP": fixed and not parts,
                    "FLOAT8": float8,
                    "UPCAST": False,
                    "num_warps": shape.warps,
                    "maxnreg": shape.registers,
                    "enable_fp_fusion": not fixed,
                }
                name = (
                    f"{kind} {dtype} {head_dim} group={group} parts={parts} fixed={fixed} {extra}"
                )
                with_cache = types | ({"cache": "*u8"} if float8 else {})
                yield name, kernels.attend_kernel, with_cache, given
        given = {"HEAD_DIM": head_dim, "BLOCK_D": columns, "num_warps": 1}
        yield f"merge {dtype} {head_dim}", kernels.merge_kernel, types, given
    for of_8 in (False, True):
        given = {"BLOCK_SIZE": 16, "FLOAT8": of_8, "BLOCK": 1024}
        with_cache = types | ({"cache": "*u8"} if of_8 else {})
        yield f"store {dtype} float8={of_8}", kernels.store_kernel, with_cache, given


def _projected(dtype: str) -> Iterator[Variant]:
    pointers = ("projected", "query_norm", "key_norm", "cosine", "sine", "query", "cache")
    strides = ("token_stride", "block_stride", "half_stride", "cell_stride")
    types = dict.fromkeys(pointers, f"*{dtype}") | dict.fromkeys(strides, "i32")
    types |= {"slots": "*i64", "epsilon": "fp32", "key_inverse": "fp32", "value_inverse": "fp32"}
    for head_dim, rotary, normed, of_8 in (
        (64, 64, False, False),
        (80, 32, False, True),
        (128, 128, True, False),
        (128, 128, True, True),
    ):
        columns = triton.next_power_of_2(head_dim)
        given = {
            "HEADS": 32,
            "KV_HEADS": 8,
            "HEAD_DIM": head_dim,
            "ROTARY": rotary,
            "NORMED": normed,
            "FLOAT8": of_8,
            "BLOCK_SIZE": 16,
            "BLOCK_H": 2048 // columns,
            "BLOCK_D": columns,
            "num_warps": 8,
        }
        name = f"prepare {dtype} {head_dim} normed={normed} float8={of_8}"
        with_cache = types | ({"cache": "*u8"} if of_8 else {})
        yield name, projected.prepare_kernel, with_cache, given


def compiled(variant: Variant, capability: int) -> dict[str, Any]:
    _, kernel, types, given = variant
    names = kernel.arg_names
    constants = {name: value for name, value in given.items() if name in names}
    options = {name: value for name, value in given.items() if name not in names}
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    # What a launch finds out: pointers and most strides are multiples of 16.
    aligned = {
        (at,): _ALIGNED
        for at, name in enumerate(names)
        if signature[name].startswith("*")
        or (name.endswith("_stride") and name != "table_stride")
        or name in ("x_token", "x_head", "size", "inputs", "outputs")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    binary = triton.compile(source, target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [_TOOLS / "cuobjdump", "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", told)[-1]
    return {
        "registers": int(registers),
        "stack": int(stack),
        "shared": binary.metadata.shared,
        "wgmma": "wgmma" in binary.asm["ptx"],
    }


if __name__ == "__main__":
    capability = int(sys.argv[1])
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    chosen = [variant for variant in variants() if wanted in variant[0]]
    print(json.dumps({variant[0]: compiled(variant, capability) for variant in chosen}))
