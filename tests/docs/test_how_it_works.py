"""docs/how-it-works.md and its picture name only modules and attributes that exist."""

import re
from importlib import import_module
from itertools import accumulate

import pytest
from repository import ROOT

import vtfast

HOW = (ROOT / "docs" / "how-it-works.md").read_text()
PICTURE = (ROOT / "docs" / "how-it-works.svg").read_text()
NAMES = sorted(set(re.findall(r"`([a-z_0-9]+(?:\.\w+)+|[a-z_]+)`", HOW)))
PLACES = ("vtfast.runtime", "vtfast")
OTHERS = {"generate"}  # names of transformers


def found(name: str) -> bool:
    """Whether a dotted name is a module of vtfast, or an attribute in one."""
    if _has(vtfast, name):
        return True
    for place in PLACES:
        for module in list(accumulate(name.split("."), "{}.{}".format))[::-1]:
            try:
                thing = import_module(f"{place}.{module}")
            except ImportError:
                continue
            return _has(thing, name[len(module) + 1 :])
    return False


def _has(thing: object, path: str) -> bool:
    for part in filter(None, path.split(".")):
        fields = getattr(thing, "__annotations__", {})
        instance = getattr(getattr(thing, "__init__", None), "__code__", None)
        if not hasattr(thing, part):
            return part in fields or (instance is not None and part in instance.co_names)
        thing = getattr(thing, part)
    return True


@pytest.mark.parametrize("name", sorted(set(NAMES) - OTHERS))
def test_every_name_in_how_it_works_exists(name: str) -> None:
    assert found(name.removeprefix("vtfast."))


def test_the_check_finds_names_and_sees_a_missing_one() -> None:
    assert len(NAMES) > 25
    assert not found("hooks.PatchHooks._no_such_hook")
    assert not found("no_such_module")


def test_every_name_in_the_picture_exists() -> None:
    names = re.findall(r"monospace\">([\w.]+)<", PICTURE)
    homes = ("hooks.PatchHooks", "state", "packed_kv_cache", "kernels.ragged_decode")
    assert len(names) > 8
    assert [name for name in names if not any(found(f"{home}.{name}") for home in homes)] == []
