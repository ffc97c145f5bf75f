"""Compile every kernel ahead of time, as it is shipped, for GPUs that need not be here.

`python tests/aot.py` prints a JSON list: what the assembler says of each kernel (registers, stack,
spills, shared memory) and how often it uses the instructions that make it fast. A process of its
own, because Triton decides at its import whether it compiles or interprets.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)")
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
COUNTED = {
    "load_128": r"LDG\..*128",
    "load": r"LDG",
    "store_128": r"STG\..*128",
    "spill": r"LDL|STL",
    "hmma": r"HMMA",
    "hgmma": r"HGMMA",
    "tcgen05": r"UTC.*MMA",
    "barrier": r"BAR",
}


@dataclass(frozen=True)
class Variant:
    """One kernel with the types of its arguments and the values of its constants."""

    label: str
    kernel: Any
    types: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, Any]
    multiples_of_16: tuple[str, ...] = ()  # among the sizes and strides; pointers always are


def variants() -> Iterator[Variant]:
    """Every kernel at the settings its launcher chooses."""
    import torch

    from vtfast.kernels import (
        diversity_select,
        gather,
        query_scores,
        random_select,
        threshold,
        topk_select,
    )

    for index in ("i32", "i64"):
        yield Variant(
            f"gather hidden + positions, {index}",
            gather._gather_rows_kernel,
            {
                "index_ptr": f"*{index}",
                "x_ptrs": ("*bf16", "*i64"),
                "out_ptrs": ("*bf16", "*i64"),
                "num_rows": "i32",
                "strides": ("i32", "i32"),
            },
            {
                "LAYOUTS": ((2048, 4, 4, gather._SPAN), (2, 4, 1, 2)),
                "ROWS": gather._ROWS,
                "SPAN": gather._SPAN,
            },
            {"num_warps": gather._WARPS},
        )
    for longest, warps in threshold.TILES:
        tile = {"ROWS": longest // threshold.COLUMNS, "COLUMNS": threshold.COLUMNS}
        offsets = {"cu_seqlens_ptr": "*i32", "cu_keep_ptr": "*i32", "out_ptr": "*i32"}
        for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            yield Variant(
                f"topk {name}, {longest} rows",
                topk_select._topk_select_kernel,
                offsets | {"scores_ptr": f"*{name}"},
                tile | {"BITS": topk_select._BITS[dtype], "INFINITY": topk_select._INFINITY[dtype]},
                {"num_warps": warps},
            )
        yield Variant(
            f"random, {longest} rows",
            random_select._random_select_kernel,
            offsets | {"seed_ptr": "*i64", "keys_ptr": "*i64", "stream_ptr": "*i32"},
            tile | {"WORD_BITS": 32},
            {"num_warps": warps},
        )
        yield Variant(
            f"diversity greedy, {longest} rows",
            diversity_select._greedy_kernel,
            dict.fromkeys((*offsets, "nearest_ptr", "cu_matrix_ptr"), "*i32")
            | {"matrix_ptr": "*fp32", "index_ptr": "*i32", "order_ptr": "*i32"},
            tile,
            {"num_warps": warps},
        )
    for name, size in (("fp32", 4), ("bf16", 2), ("fp16", 2)):
        features = {"x_ptr": f"*{name}", "inverse_ptr": "*fp32", "nearest_ptr": "*i32"}
        yield Variant(
            f"diversity norms {name}",
            diversity_select._norms_kernel,
            features | {"num_rows": "i32", "stride_x": "i32"},
            {
                "D": 3584,
                "ROWS": diversity_select._NORM_ROWS,
                "BLOCK": diversity_select._NORM_BLOCK,
            },
            {"enable_fp_fusion": False},
            ("stride_x",),
        )
        yield Variant(
            f"diversity distances {name}",
            diversity_select._distances_kernel,
            features
            | dict.fromkeys(("cu_seqlens_ptr", "cu_keep_ptr", "cu_matrix_ptr"), "*i32")
            | {"matrix_ptr": "*fp32", "tiles": "i32", "stride_x": "i32"},
            {
                "D": 3584,
                "RAW": size == 2,
                "PRECISION": "tf32x3",
                "TILE": diversity_select._TILE,
                "DEPTH": diversity_select._DEPTH[size],
            },
            {
                "num_warps": diversity_select._WARPS,
                "num_stages": diversity_select._STAGES,
                "enable_fp_fusion": False,
            },
            ("stride_x",),
        )
    for name, size, group in (("bf16", 2, 7), ("bf16", 2, 1), ("fp32", 4, 7)):
        pointers = {"logits_ptr": "*fp32", "top_ptr": "*fp32", "weight_ptr": "*fp32"}
        strides = ("stride_qb", "stride_qh", "stride_kt", "stride_kh")
        yield Variant(
            f"scores {name}, {group} queries a key",
            query_scores._logits_kernel,
            pointers
            | {"q_ptr": f"*{name}", "k_ptr": f"*{name}", "cu_seqlens_ptr": "*i32"}
            | dict.fromkeys(("total", *strides), "i32")
            | {"scale": "fp32"},
            {
                "GROUP": group,
                "ROWS": query_scores._rows(group),
                "D": 128,
                "BLOCK_D": 128,
                "KEYS": query_scores._KEYS,
                "SPLITS": query_scores._SPLITS,
                "PRECISION": "tf32x3",
            },
            {"num_warps": query_scores._WARPS, "num_stages": query_scores._STAGES[size]},
            strides,
        )
    yield Variant(
        "scores merged",
        query_scores._merge_kernel,
        pointers | {"cu_seqlens_ptr": "*i32", "scores_ptr": "*fp32", "total": "i32"},
        {
            "H": 28,
            "HEADS": query_scores._MERGE_HEADS,
            "KEYS": query_scores._MERGE_KEYS,
            "SPLITS": query_scores._SPLITS,
            "SPLIT_KEYS": query_scores._KEYS,
        },
        {"num_warps": query_scores._MERGE_WARPS},
    )


def fused_variants() -> Iterator[Variant]:
    """Selections that gather hidden states and positions in the same launch."""
    import torch

    from vtfast.kernels import gather_picks, random_select, threshold, topk_select

    def variant(label: str, kernel: Any, types: dict, constants: dict, longest: int, warps: int):
        block = gather_picks.WORDS_PER_WARP * warps
        return Variant(
            f"{label} + gather, {longest} rows",
            kernel,
            types
            | dict.fromkeys(("cu_seqlens_ptr", "cu_keep_ptr", "index_ptr"), "*i32")
            | dict.fromkeys(("x_ptrs", "out_ptrs"), ("*bf16", "*i64"))
            | {"blocks": "i32", "strides": ("i32", "i32")},
            constants
            | {
                "LAYOUTS": ((2048, 4, 4, block), (2, 4, 1, 2)),
                "ROWS": longest // threshold.COLUMNS,
                "COLUMNS": threshold.COLUMNS,
                "PICKS": gather_picks.PICKS,
                "SPAN": gather_picks.SPAN,
            },
            {"num_warps": warps},
        )

    words = {"seed_ptr": "*i64", "keys_ptr": "*i64", "stream_ptr": "*i32"}
    for tile in threshold.TILES:
        if tile[0] > gather_picks.MAX_LENGTH:
            break
        kernel = random_select._random_gather_kernel
        yield variant("random", kernel, words, {"WORD_BITS": 32}, *tile)
        kernel = topk_select._topk_gather_kernel
        for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            bits = {"BITS": topk_select._BITS[dtype], "INFINITY": topk_select._INFINITY[dtype]}
            yield variant(f"topk {name}", kernel, {"scores_ptr": f"*{name}"}, bits, *tile)


def aligned(variant: Variant, names: list[str]) -> dict[tuple[int, ...], Any]:
    """Pointers are multiples of 16 bytes, as PyTorch's allocator gives them."""
    attributes: dict[tuple[int, ...], Any] = {}
    for i, name in enumerate(names):
        kind = variant.types.get(name, "")
        members = enumerate(kind) if isinstance(kind, tuple) else [(None, kind)]
        for j, member in members:
            if member.startswith("*") or name in variant.multiples_of_16:
                attributes[(i,) if j is None else (i, j)] = [["tt.divisibility", 16]]
    return attributes


def build(variant: Variant, arch: str) -> dict[str, Any]:
    """Compile for one GPU and count what came out."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(variant.kernel.arg_names)
    signature = {name: variant.types.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    is_nvidia = arch.startswith("sm_")
    if "PRECISION" in variant.constants and not is_nvidia:
        constants[(names.index("PRECISION"),)] = "ieee"  # as the launcher does
    source = ASTSource(variant.kernel, signature, constants, aligned(variant, names))
    target = (
        GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
        if is_nvidia
        else GPUTarget("hip", arch, 64)
    )
    binary = triton.compile(source, target=target, options=variant.options)
    facts = {"kernel": variant.label, "arch": arch, "shared": binary.metadata.shared}
    return facts | (_inspect(binary.asm["cubin"]) if is_nvidia else {})


def _inspect(cubin: bytes) -> dict[str, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, _, local = map(int, RESOURCES.search(text).groups())
    found = Counter(INSTRUCTION.findall(text))
    counts = {
        name: sum(times for code, times in found.items() if re.match(pattern, code))
        for name, pattern in COUNTED.items()
    }
    return {"registers": registers, "stack": stack, "local": local} | counts


def in_a_process_of_its_own() -> list[dict[str, Any]]:
    """All variants on all GPUs, compiled where Triton does not interpret."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, __file__],
        env=clean | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


if __name__ == "__main__":
    every = [*variants(), *fused_variants()]
    print(json.dumps([build(variant, arch) for variant in every for arch in ARCHS], indent=1))
