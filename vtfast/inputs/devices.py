"""The device that a user names, and why torch sees no GPU where there is one."""

import shutil
import textwrap
from pathlib import Path

import torch

from vtfast.errors import InputError
from vtfast.inputs.distributed import Process


def device_named(name: str) -> torch.device:
    """The device called `name`; "auto" is the first GPU if there is one, else the CPU.

    Raises InputError for a device that torch does not know or cannot use here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: unknown to torch; pass auto, cpu or cuda") from None
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = why_no_gpu() or textwrap.shorten(str(error), 300, placeholder=" …")
        raise InputError(f"--device {name}: {reason}; pass auto or cpu") from None
    return device


def own_gpu(name: str, process: Process) -> str:
    """The name of the device for one of several processes: a GPU of its own, unless the user has
    named another device than "auto" or "cuda"."""
    several = process.size > 1 and name in ("auto", "cuda") and torch.cuda.is_available()
    return f"cuda:{process.local}" if several else name


def torch_build() -> str:
    """What torch is built for, as a sentence."""
    kinds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    built = " and ".join(f"{name} {number}" for name, number in kinds.items() if number)
    return f"torch is built for {built or 'CPUs only'}"


def why_no_gpu() -> str:
    """Why torch cannot use the NVIDIA GPU of this machine, and what to do; "" if it can."""
    driver = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()
    if torch.cuda.is_available() or not driver:
        return ""
    fix = "check nvidia-smi and CUDA_VISIBLE_DEVICES"
    if not torch.version.cuda and not torch.version.hip:
        fix = "install a CUDA build of torch"
    return f"there is an NVIDIA driver here, but torch sees no GPU ({torch_build()}): {fix}"
