"""The one table of what can be patched: the README shows it, and errors name it."""

from pathlib import Path

import pytest
import torch
import transformers

import vtfast
from vtfast.errors import UnsupportedModelError
from vtfast.models import NOT_YET, SUPPORTED, family_of_class

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_readme_has_the_table():
    rows = [
        line for line in README.splitlines() if line.startswith("| `") and "Generation`" in line
    ]
    assert rows == [
        f"| `{name}` | {one.models} | {', '.join(one.layouts)} |" for name, one in SUPPORTED.items()
    ]


def test_users_can_ask_for_it():
    assert vtfast.supported() == {name: one.models for name, one in SUPPORTED.items()}


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_family_runs_in_the_layouts_that_the_table_says(name):
    """Those with recurrent layers in the padded one only, which the tests of them show."""
    one = SUPPORTED[name].layouts
    both = not family_of_class(name).recurrent
    assert one == (("padded", "packed") if both else ("padded",))


@pytest.mark.parametrize("name", ["Gemma3ForConditionalGeneration"])
def test_what_is_not_supported_yet_is_refused_with_what_is_missing(name):
    class_ = getattr(transformers, name)
    model = class_.__new__(class_)
    torch.nn.Module.__init__(model)
    with pytest.raises(UnsupportedModelError, match=f"cannot patch {name}: not yet, since most of"):
        vtfast.patch(model)
    assert "Gemma3" in NOT_YET
