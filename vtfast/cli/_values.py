"""What the values of options mean, and whether files can be written: for all commands.

Importing this module loads no torch, transformers or Pillow.
"""

from collections.abc import Iterable
from pathlib import Path

from vtfast.cli._terminal import writing
from vtfast.errors import InputError
from vtfast.plan_file import is_plan_file


def layer_numbers(layers: str | None) -> tuple[int, ...] | None:
    """The value of --layers, such as 0,4,8-11, as numbers; None for all."""
    return None if layers is None else numbers("--layers", layers, digits=3)


def numbers(option: str, value: str, digits: int) -> tuple[int, ...]:
    """The value of an option that takes numbers and ranges, such as 0,4,8-11, as numbers."""
    found: list[int] = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        good = all(end.isdecimal() and len(end) <= digits for end in ends)
        if not good or int(ends[0]) > int(ends[1]):
            raise InputError(f"{option} {value}: expected numbers and ranges, such as 0,4,8-11")
        found += range(int(ends[0]), int(ends[1]) + 1)
    return tuple(found)


def shares(keep: str) -> list[float]:
    """The value of a --keep that takes several shares, such as 0.1,0.25, as numbers."""
    try:
        found = [float(part) for part in keep.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < share <= 1 for share in found):
        raise InputError(f"--keep {keep}: expected shares above 0, up to 1, such as 0.1,0.25")
    return found


def source_of_questions(
    task: str | None, data: Path | None, image_folder: Path | None = None
) -> str | Path:
    """The task whose scenes are asked about, or the data file; InputError unless it is one."""
    if image_folder is not None and data is None:
        raise InputError("--image-folder says where the pictures of --data are; pass --data too")
    if task is not None and data is None:
        return task
    if data is not None and task is None:
        return data
    raise InputError("pass exactly one of --task and --data")


def plan_files(names: Iterable[str]) -> list[Path]:
    """Those of the plans, or methods, that are files."""
    return [Path(name) for name in names if is_plan_file(name)]


def check_not_read(out: Path | None, read: Iterable[Path | None], option: str = "--out") -> None:
    """Refuse an --out if its picture, or the JSON beside it, would overwrite a file of `read`."""
    taken = {path.resolve() for path in read if path is not None}
    for target in () if out is None else (out, out.with_suffix(".json")):
        if target.resolve() in taken:
            raise InputError(f"{option} {out} would write over {target}; pass another name")


def check_writable(option: str, out: Path) -> None:
    """Refuse a file that cannot be written."""
    with writing(out):
        if not out.parent.is_dir():
            raise InputError(f"{option} {out}: there is no folder {out.parent}; create it first")
        if out.is_dir():
            raise InputError(f"{option} {out} is a folder; pass the name of a file")
        if not out.exists():
            out.touch()
            out.resolve().unlink()
        elif out.is_file():
            out.open("ab").close()
