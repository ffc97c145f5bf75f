"""Run the README's installation commands where nothing but torch is installed.

    python tests/helpers/readme_install.py FOLDER

makes an environment in FOLDER, installs the torch that constraints.txt pins, and then runs every
line of the README's first code block under "Install" as it stands there, in a copy of the
repository's files, followed by one patched generation. No other version is pinned.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from repository import ROOT, repository_files

SNIPPET = """
import vtfast
model, processor = vtfast.toy.load("llava")
(picture,), (question,), (answer,) = vtfast.toy.scenes(1, 0, "background")
inputs = processor(images=[picture], text=[vtfast.toy.prompt(processor, question)],
                   return_tensors="pt")
vtfast.patch(model)
said = model.generate(**inputs, do_sample=False, max_new_tokens=4)
said = processor.decode(said[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
assert said == answer, (said, answer)
print("patched, it answers", said)
"""


def commands(readme: str) -> list[str]:
    """The lines of the first code block of the section "Install"."""
    block = re.search(r"^## Install$.*?^```\w*\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    assert block is not None, "the README has no code block under ## Install"
    return block[1].splitlines()


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    (torch,) = (pin for pin in pins if pin.startswith("torch=="))
    path = f"{folder.absolute() / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["PATH"] = path

    def run(*command: str, shell: bool = False, cwd: str | None = None) -> None:
        print("$", *command, flush=True)
        subprocess.run(
            command[0] if shell else command, shell=shell, check=True, env=environment, cwd=cwd
        )

    run("pip", "install", "--quiet", torch)
    with tempfile.TemporaryDirectory() as copy:
        for name in repository_files():
            target = Path(copy, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
        for line in commands((ROOT / "README.md").read_text()):
            run(line, shell=True, cwd=copy)
    run("python", "-c", SNIPPET, cwd=str(folder))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
