"""`docs/write-a-method.md` runs as it stands."""

import re

from repository import ROOT

import vtfast
from vtfast.methods import SelectionContext

PAGE = (ROOT / "docs" / "write-a-method.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_runs_as_it_stands(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec("\n".join(BLOCKS), {})
    shown = capsys.readouterr().out
    assert "layer 2: off-centre keeps 50.00%" in shown
    assert "padded layout" in shown
    assert {"unpruned", "off-centre", "diversity", "random"} <= set(shown.split())


def test_the_first_method_is_ten_lines():
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 10


def test_the_table_names_what_a_method_can_look_at():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    fields = {name for name in SelectionContext.__annotations__ if not name.startswith("_")}
    found = {name for name in vars(SelectionContext) if not name.startswith("_")}
    lazy = found - {"keys", "of_features"}  # the old name of `image_hash`; what makes a context
    assert named == fields | lazy


def test_the_ops_named_are_there():
    for name in re.findall(r"`(\w+_select)`", PAGE):
        assert name in vtfast.ops.__all__
