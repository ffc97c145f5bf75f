"""Compile every kernel ahead of time, with the settings of its launcher, for GPUs not present.

`python tests/helpers/aot.py gate|all GPU,... GPU...` compiles the cases for the GPUs of the first
list and prints a JSON object. It has the settings of all kernels on the GPUs of the second list,
and for each compiled case what the assembler reports (registers, stack, spills, shared memory) and
how often it uses the instructions that make the kernel fast.

Every version of Triton and every maker of GPUs needs a process of its own: Triton decides at its
import whether it compiles or interprets, and some settings are chosen when a kernel is imported.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "triton-cache"

# The one we develop on, and that of torch 2.11; its code and its spills differ.
VERSIONS = ("3.7.1", "3.6.0")
NVIDIA = ("sm_80", "sm_90", "sm_100")
AMD = ("gfx942",)
ARCHS = (*NVIDIA, *AMD)
# What the tests compile for; `make aot` compiles for all GPUs with both versions.
GATED = {"3.7.1": ARCHS, "3.6.0": ("sm_90",)}

INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)")
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
COUNTED = {
    "loads": r"LDG",
    "loads_128": r"LDG\..*128",
    "stores_128": r"STG\..*128",
    "async_copies": r"LDGSTS",
    "spills": r"LDL|STL",
    "barriers": r"BAR",
    "hmma": r"HMMA",
    "hgmma": r"HGMMA",
    "tcgen05": r"UTC.*MMA",
}
AMD_RESOURCES = {
    "registers": r"\.vgpr_count:\s+(\d+)",
    "stack": r"\.private_segment_fixed_size:\s+(\d+)",
    "spills": r"\.[sv]gpr_spill_count:\s+(\d+)",
}


@dataclass(frozen=True)
class Kernel:
    """What a launcher asked Triton to compile for one GPU."""

    function: Any
    arch: str
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    def setting(self) -> dict[str, Any]:
        """The same without function and GPU, as JSON has it."""
        names = list(self.signature)

        def at(path: tuple[int, ...]) -> str:
            return ".".join([names[path[0]], *map(str, path[1:])])

        types = {name: kind for name, kind in self.signature.items() if kind != "constexpr"}
        setting = {
            "warps": self.options["num_warps"],
            "stages": self.options["num_stages"],
            "fp_fusion": self.options["enable_fp_fusion"],
            "constants": {at(path): value for path, value in self.constants.items()},
            "types": types,
            "multiples_of_16": [
                at(path)
                for path, known in self.attributes.items()
                if ["tt.divisibility", 16] in known  # for AMD there are others
            ],
        }
        return json.loads(json.dumps(setting))

    def compile(self) -> dict[str, int]:
        import triton
        from no_driver import target
        from triton.compiler import ASTSource

        source = ASTSource(self.function, self.signature, self.constants, self.attributes)
        binary = triton.compile(source, target=target(self.arch), options=self.options)
        inspect = _inspect if self.arch in NVIDIA else _inspect_amd
        return {"shared": binary.metadata.shared} | inspect(binary.asm)


def requested(arch: str) -> Iterator[tuple[str, bool, Kernel]]:
    """Case, gate and kernel of all that the launchers want compiled, in the order of the cases."""
    import no_driver

    no_driver.stand_in(arch)
    import aot_cases
    import triton

    from vtfast.kernels import _launch

    _launch.INTERPRETED_AS = arch  # the settings of this GPU
    wanted: list[Kernel] = []

    def collect(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        options = ("num_warps", "num_stages", "enable_fp_fusion")
        wanted.append(
            Kernel(
                fn.jit_function,
                arch,
                compile["signature"],
                compile["constants"],
                compile["configs"][0],
                {name: compile[name] for name in options},
            )
        )
        return True  # nothing is compiled nor launched

    triton.knobs.runtime.jit_cache_hook = collect
    for case in aot_cases.cases():
        wanted.clear()
        case.call()
        for kernel in wanted:
            yield case.name, case.gate, kernel


def rows(mode: str, compiled: list[str], archs: list[str]) -> list[dict[str, Any]]:
    """One row per kernel, GPU and setting, with what came out if it was compiled."""
    table: dict[str, dict[str, Any]] = {}
    for arch in archs:
        for case, gate, kernel in requested(arch):
            row = {"kernel": kernel.function.__name__, "arch": arch, "setting": kernel.setting()}
            row = table.setdefault(json.dumps(row), {"case": case, **row})
            if (gate or mode == "all") and arch in compiled and "found" not in row:
                row["found"] = kernel.compile()
    return list(table.values())


def _inspect(asm: dict[str, Any]) -> dict[str, int]:
    """Counts from the assembled code; cached, since disassembling takes longer than assembling."""
    counted = repr(COUNTED).encode()
    known = CACHE / f"{hashlib.sha256(counted + asm['cubin']).hexdigest()}.json"
    if not known.exists():
        with tempfile.NamedTemporaryFile(dir=CACHE, suffix=".cubin") as file:
            file.write(asm["cubin"])
            file.flush()
            command = [_tool("cuobjdump"), "--dump-resource-usage", "--dump-sass", file.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            done = Path(f"{file.name}.json")
        done.write_text(json.dumps(_counts(text)))
        done.replace(known)
    return json.loads(known.read_text())


def _counts(text: str) -> dict[str, int]:
    registers, stack, _, local = map(int, RESOURCES.search(text).groups())
    found = Counter(INSTRUCTION.findall(text))
    counts = {
        name: sum(times for code, times in found.items() if re.match(pattern, code))
        for name, pattern in COUNTED.items()
    }
    return {"registers": registers, "stack": stack, "local": local} | counts


def _inspect_amd(asm: dict[str, Any]) -> dict[str, int]:
    text = asm["amdgcn"]
    found = {name: map(int, re.findall(what, text)) for name, what in AMD_RESOURCES.items()}
    return {name: sum(numbers) for name, numbers in found.items()} | {
        "loads_128": len(re.findall(r"(?:global|buffer)_load_dwordx4", text)),
        "mfma": len(re.findall(r"v_mfma", text)),
    }


def _tool(name: str) -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def _assemblers() -> list[str]:
    said = [
        subprocess.run([_tool(name), "--version"], capture_output=True, text=True).stdout
        for name in ("ptxas", "ptxas-blackwell")
    ]
    return [re.search(r"V(\d[\d.]*)", text).group(1) for text in said]


def _place(version: str) -> list[str]:
    """What to put before Python's path to import this version of Triton."""
    if importlib.metadata.version("triton") == version:
        return []
    folder = Path(sys.prefix) / f"triton-{version}"
    if not folder.is_dir():
        raise LookupError(f"Triton {version} is not in {folder}; run `make triton`")
    return [str(folder)]


def in_processes_of_their_own(mode: str) -> dict[str, Any]:
    """What all versions of Triton report of all kernels, each compiled in a new process.

    mode: "all" cases for all GPUs, or the "gate" cases for `GATED`; the others are listed alone.
    """
    start = time.perf_counter()
    places = {version: _place(version) for version in VERSIONS}
    jobs = [(version, archs) for version in VERSIONS for archs in (NVIDIA, AMD)]

    def process(job: tuple[str, tuple[str, ...]]) -> dict[str, Any]:
        version, archs = job
        compiled = ARCHS if mode == "all" else GATED[version]
        return _process([mode, ",".join(compiled), *archs], places[version])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(process, jobs))
    assemblers, table = {}, []
    for (version, _), report in zip(jobs, reports, strict=True):
        assert report["triton"] == version, (report["triton"], version)
        assemblers[version] = report["ptxas"]
        table += [{"triton": version, **row} for row in report["rows"]]
    return {"ptxas": assemblers, "seconds": time.perf_counter() - start, "rows": table}


def _process(arguments: list[str], place: list[str]) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([*place, str(ROOT)])
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=clean | {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(CACHE)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def main() -> None:
    import triton

    mode, compiled, *archs = sys.argv[1:]
    table = rows(mode, compiled.split(","), archs)
    print(json.dumps({"triton": triton.__version__, "ptxas": _assemblers(), "rows": table}))


if __name__ == "__main__":
    main()
