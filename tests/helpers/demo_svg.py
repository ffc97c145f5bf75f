"""Draw what `make demo` prints as docs/demo.svg, a terminal for the README.

    python tests/helpers/demo_svg.py

runs `vtfast demo` with its timings: two minutes.
"""

import os
import re
import subprocess
import sys
import tempfile
from io import StringIO

from repository import ROOT
from rich.console import Console
from rich.text import Text

OUT, COLUMNS = ROOT / "docs" / "demo.svg", 84


def printed(*arguments: str) -> str:
    """What `vtfast` prints with these arguments, with the colours of a terminal."""
    command = [sys.executable, "-m", "vtfast", *arguments]
    env = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, check=True, capture_output=True, env=env, cwd=folder)
    return done.stdout.decode()


def terminal(text: str) -> str:
    """An SVG of a terminal that shows this text; nothing in it is fetched from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text("$ make demo", style="bold"))
    console.print(Text.from_ansi(text))
    drawn = console.export_svg(title="vtfast", unique_id="demo")
    return re.sub(r"@font-face\s*{.*?}", "", drawn, flags=re.DOTALL)


if __name__ == "__main__":
    OUT.write_text(terminal(printed("demo")))
