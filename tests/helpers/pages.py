"""What the pages for readers are made of: blocks of code, commands, headings and links.

Pages are plain Markdown, as code hosts show it. A block of code begins with three backticks at the
start of a line; `blocks` refuses any other form, so that none is overlooked.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

from repository import ROOT, repository_files

DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PROGRAMS = ("vtfast", "make", "python", "pip", "pytest", "torchrun", "accelerate", "vllm")
_COMMAND = re.compile(rf"(?:[A-Z_]+=\S* )*(?:\.venv/bin/)?(?:{'|'.join(PROGRAMS)}) ")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code. language: the word behind the backticks, "" without one."""

    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command of a page. whole: False in running text, which may leave out what is required."""

    text: str
    whole: bool


@cache
def read(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(text: str) -> list[Block]:
    """The blocks of code of a page, in their order."""
    found = [Block(*groups) for groups in _BLOCK.findall(text)]
    fences = re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)
    if len(fences) != 2 * len(found):
        raise ValueError(f"{len(fences)} fences and {len(found)} blocks: indented, or not closed")
    return found


def commands(text: str, known: bool = False) -> list[Command]:
    """The commands of a page: lines of blocks that are no Python or JSON, and code in the text.

    Of a block that shows what a command prints the lines behind `$` are commands. Pages outside of
    docs/ have blocks with other things; `known=True` leaves those out.
    """
    found = []
    for block in blocks(text):
        if block.language in ("python", "json"):
            continue
        lines = block.text.replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        lines = [line for line in lines if line.strip() and (_COMMAND.match(line) or not known)]
        found += [Command(line, True) for line in lines]
    for code in re.findall(r"`([^`\n]+)`", prose(text)):
        if _COMMAND.match(code):
            found.append(Command(code.split(" …")[0], False))
    return found


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return _BLOCK.sub("", text)


def links(text: str) -> list[str]:
    """Where the links and pictures of a page lead, but for those to other sites."""
    text = re.sub(r"`[^`\n]*`", "", prose(text))
    found = re.findall(r"\]\(\s*<?([^)>\s]+)>?[^)]*\)", text)
    found += re.findall(r"^\[[^\]]+\]:\s*<?([^>\s]+)", text, re.MULTILINE)
    found += re.findall(r"\b(?:src|href)=\"([^\"]+)\"", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.MULTILINE):
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while anchor in found:
            number += 1
            anchor = f"{slug}-{number}"
        found.add(anchor)
    return found


@cache
def _entries() -> frozenset[str]:
    """All files of the repository, and the folders they are in."""
    files = repository_files()
    above = {parent.as_posix() for file in files for parent in PurePosixPath(file).parents}
    return frozenset({*files, *above})


def why_broken(page: str, text: str, link: str) -> str:
    """What is wrong with a link of a page; "" if nothing is."""
    path, _, anchor = link.partition("#")
    target = page
    if path:
        place = (ROOT / page).parent.joinpath(path)
        # Not resolved: vtfast/kernels is a link itself.
        parts: list[str] = []
        for part in place.relative_to(ROOT).parts:
            parts = parts[:-1] if part == ".." and parts else [*parts, part]
        target = "/".join(parts) or "."
        kernels = target.replace("vtfast/kernels/", "kernels/", 1)
        if not {target.rstrip("/"), kernels} & _entries():
            return f"{target} is no file or folder of the repository"
    if anchor:
        headings = anchors(text if target == page else read(target))
        if not target.endswith(".md") or anchor not in headings:
            return f"{target} has no heading #{anchor}"
    return ""
