"""The site's navigation has every page, and its API reference every public name.

`make docs` builds the site; these need no builder.
"""

import re
import runpy
from functools import cache
from importlib import import_module
from typing import Any

import pytest
from pages import DOCS, read
from repository import ROOT

import vtfast

NAMES = re.findall(r"^- `([\w.]+)`$", read("docs/api.md"), re.MULTILINE)
# Public in `__all__`, and neither a function nor a class.
MODULES = ["evaluation", "information", "methods", "ops", "processors", "report", "toy", "tuning"]
NOT_SHOWN = {f"vtfast.{name}" for name in MODULES} | {"vtfast.__version__", "vtfast.toy.TASKS"}


@cache
def conf() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "conf.py"))


def test_the_index_has_every_page_once() -> None:
    linked = re.findall(r"^- \[[^\]]+\]\(([^)]+)\)", read("docs/index.md"), re.MULTILINE)
    pages = [page.removeprefix("docs/") for page in DOCS if page != "docs/index.md"]
    others = ["../README.md", "../CONTRIBUTING.md", "../CHANGELOG.md"]
    assert sorted(linked) == sorted([*pages, *others])


def test_the_navigation_is_the_index() -> None:
    text = conf()["navigation"]("# a\n\n## B\n\n- [c](c.md): see [d](d.md)\n- [e](../e.md)\n")
    assert text.endswith("```{toctree}\n:hidden:\n:caption: B\n\nc\n../e\n```")
    site = conf()["navigation"](read("docs/index.md"))
    assert site.count("```{toctree}") == read("docs/index.md").count("\n## ")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_reference_is_there_with_a_docstring(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert getattr(import_module(module), attribute).__doc__
    assert f":: {name}\n" in conf()["documented"](name)


def test_the_reference_has_every_public_name() -> None:
    packages = (vtfast, vtfast.information, vtfast.ops, vtfast.toy)
    public = {f"{package.__name__}.{name}" for package in packages for name in package.__all__}
    assert public - NOT_SHOWN <= set(NAMES)
    assert len(NAMES) == len(set(NAMES))


def test_the_site_loads_nothing_from_elsewhere() -> None:
    """No font, script or style of another host is named in what makes the site."""
    source = (ROOT / "docs" / "conf.py").read_text()
    assert "http://" not in source
    assert "https://" not in source


def test_pages_have_no_directives_of_the_builder() -> None:
    for page in DOCS:
        assert "```{" not in read(page)
        assert not re.search(r"\{(?:ref|doc|py:\w+|download)\}`", read(page))
