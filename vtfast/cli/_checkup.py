"""What `vtfast doctor` finds: versions, devices, which implementation each op takes, a trial.

Nothing here raises for what it finds: a check that trips over something notes it as broken.
Importing this module is light, so that it can say what is wrong with torch and transformers.
"""

import importlib
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vtfast import __version__

OK, MISSING, WARNING, BROKEN = "ok", "missing", "warning", "broken"

# Package -> the versions supported, whether nothing works without it, and what it is for. A test
# compares the ranges with those of pyproject.toml.
PACKAGES = {
    "torch": (">=2.9", True, "everything"),
    "transformers": (">=5.17,<6", True, "the models"),
    "numpy": ("", True, "everything"),
    "pillow": (">=10.1", True, "pictures"),
    "triton": (">=3.6", False, "the kernels, on a GPU"),
    "rich": ("", True, "this command"),
    "typer": ("", True, "this command"),
    "matplotlib": ("", False, "--out and the demo: drawing what was kept"),
    "torchvision": ("", False, "the stock processor of Qwen2.5-VL; vtfast brings one without"),
    "accelerate": ("", False, "device_map and offloading of models you load yourself"),
}
_MODULES = {"pillow": "PIL"}
_OLDEST_CAPABILITY = (8, 0)  # of the GPUs the kernels are compiled for in the tests


@dataclass(frozen=True)
class Package:
    """A package as it is here; MISSING is one that something optional needs."""

    name: str
    found: str | None
    supported: str
    purpose: str
    status: str


@dataclass(frozen=True)
class Op:
    """Which implementation an op takes here with `impl="auto"`, seen in a call, and why."""

    name: str
    implementation: str
    reason: str
    status: str


@dataclass(frozen=True)
class Check:
    """Something that was tried, and what came of it."""

    name: str
    result: str
    status: str


@dataclass
class Findings:
    """Everything there is to say; `runtime` is what torch is built for, `advice` what to do."""

    system: str = f"vtfast {__version__}, Python {platform.python_version()}, {platform.platform()}"
    packages: list[Package] = field(default_factory=list)
    runtime: str = ""
    devices: list[dict[str, Any]] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether nothing that vtfast needs is broken."""
        found = [p.status for p in self.packages] + [o.status for o in self.ops]
        return BROKEN not in found + [check.status for check in self.checks]


def check_up(on_step: Callable[[], object] = lambda: None) -> Findings:
    """Look at everything; takes seconds, most of them to import torch and transformers.

    `on_step` is called `STEPS` times.
    """
    findings = Findings()
    for step in (_packages, _devices, _tries):
        if step is _packages or findings.usable:  # without torch the rest would only repeat that
            step(findings)
        on_step()
    return findings


STEPS = 3


def _packages(findings: Findings) -> None:
    from packaging.specifiers import SpecifierSet

    for name, (supported, needed, purpose) in PACKAGES.items():
        found, status = None, OK
        try:
            found = version(name)
            if not SpecifierSet(supported).contains(found, prereleases=True):
                status = BROKEN
                findings.advice.append(
                    f"{name} {found} is not supported: pip install '{name}{supported}'"
                )
            else:
                importlib.import_module(_MODULES.get(name, name))
        except PackageNotFoundError:
            status = BROKEN if needed else MISSING
            if needed:
                findings.advice.append(f"{name} is missing: pip install '{name}{supported}'")
        except Exception as error:
            status = BROKEN
            findings.advice.append(
                f"{name} {found} cannot be imported ({short(error)}): install one that matches "
                "the other packages" + ("" if needed else ", or uninstall it")
            )
        findings.packages.append(Package(name, found, supported, purpose, status))


def _devices(findings: Findings) -> None:
    import torch

    cpu = {"name": "cpu", "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    findings.devices.append(cpu)
    runtimes = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    built = " and ".join(f"{name} {v}" for name, v in runtimes.items() if v)
    findings.runtime = f"torch is built for {built}" if built else "torch is built for CPUs only"
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
            fix = "check nvidia-smi and CUDA_VISIBLE_DEVICES" if built else "install a CUDA build"
            findings.advice.append(
                f"there is an NVIDIA driver here, but torch {torch.__version__} sees no GPU "
                f"({findings.runtime}): {fix}"
            )
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        capability = (about.major, about.minor)
        findings.devices.append(
            {
                "name": f"cuda:{number}",
                "model": about.name,
                "memory_bytes": total,
                "free_bytes": free,
                "capability": ".".join(map(str, capability)),
            }
        )
        if torch.version.hip is None and capability < _OLDEST_CAPABILITY:
            findings.advice.append(
                f"cuda:{number} ({about.name}) is older than the GPUs the kernels are made for "
                '(compute capability 8.0): if a kernel fails, pass impl="eager"'
            )


def _tries(findings: Findings) -> None:
    from vtfast.cli import _trial
    from vtfast.inputs.checkpoints import quiet

    with quiet():
        findings.ops += _trial.try_ops(findings.advice)
        findings.checks += _trial.try_the_rest(findings.advice)


def short(error: Exception) -> str:
    """An error's message in one line of bearable length."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= 200 else message[:199] + "…"
