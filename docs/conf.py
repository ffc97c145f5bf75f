"""How Sphinx makes a site of the pages: `make docs` writes it into build/site.

The pages are plain Markdown, as a code host shows them; what a site needs besides is added here
when they are read. The navigation is the list of docs/index.md, a section of it a caption. A line
of docs/api.md that is a name becomes what the docstring of that name says. A link to a folder of
the repository leads to a copy of its files. The folder read is the repository's root, so that
README.md and docs/ link to each other as they stand.
"""

import inspect
import re
import shutil
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import vtfast

ROOT = Path(__file__).resolve().parents[1]

project = "vtfast"
version = release = vtfast.__version__
root_doc = "docs/index"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = ["docs/*.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build", "dist", "bench", "kernels", "tests", "vtfast"]

myst_heading_anchors = 6  # every heading can be linked to, by the anchors of code hosts
highlight_language = "text"
default_role = "code"  # docstrings write code in single backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"vtfast {version}"
html_copy_source = False
html_show_sphinx = False

FOLDER = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)\)")
HOME = (
    '<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">docs</a>'
)


def navigation(text: str) -> str:
    """Toctrees for the sections of an index page: what their list items link to first."""
    trees = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        pages = re.findall(r"^- \[[^\]]+\]\(([^)]+)\.md\)", section, re.MULTILINE)
        lines = [":hidden:", f":caption: {section.splitlines()[0]}", "", *pages]
        trees.append("\n".join(["```{toctree}", *lines, "```"]))
    return "\n\n".join([text, *trees])


def documented(name: str) -> str:
    """The directive that shows the docstring of a public name."""
    module, _, attribute = name.rpartition(".")
    thing = getattr(import_module(module), attribute)
    kind = "autofunction"
    if inspect.isclass(thing):
        kind = "autoexception" if issubclass(thing, Exception) else "autoclass"
    members = "" if kind != "autoclass" else "   :members:\n"
    return f"```{{eval-rst}}\n.. {kind}:: {name}\n{members}```"


def read_page(app: Any, docname: str, source: list[str]) -> None:
    """Add to a page what the site needs and a code host does not."""
    text = source[0]
    if docname == root_doc:
        text = navigation(text)
    if docname == "docs/api":
        text = re.sub(r"^- `([\w.]+)`$", lambda m: documented(m[1]), text, flags=re.MULTILINE)
    here = (ROOT / docname).parent
    up = "../" * docname.count("/")

    def of_folder(match: re.Match[str]) -> str:
        folder = here.joinpath(match[2]).resolve()
        if not folder.is_dir():
            return match[0]
        path = folder.relative_to(ROOT).as_posix()
        app.folders.add(path)
        return f'<a href="{up}source/{path}/index.html">{escape(match[1]).replace("`", "")}</a>'

    source[0] = FOLDER.sub(of_folder, text)


def plain(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks; nothing else in them is markup."""
    for number, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...")):
            continue
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"(?<!\\)([*|])(?=\S)", r"\\\1", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def finish(app: Any, error: Exception | None) -> None:
    """Copy the folders that pages link to, with an index each, and lead from the root to docs."""
    if error is not None:
        return
    for path in sorted(app.folders):
        out = Path(app.outdir, "source", path)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        names = sorted(file.name for file in (ROOT / path).iterdir() if file.is_file())
        for name in names:
            shutil.copy2(ROOT / path / name, out / f"{name}.txt")
        rows = "".join(f'<li><a href="{escape(n)}.txt">{escape(n)}</a></li>' for n in names)
        (out / "index.html").write_text(f"<title>{path}</title><h1>{path}</h1><ul>{rows}</ul>")
    Path(app.outdir, "index.html").write_text(HOME)


def setup(app: Any) -> None:
    app.folders = set()
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", plain)
    app.connect("build-finished", finish)
