"""A task of lmms-eval over bundled scenes, and bundled models where it can load them.

For environments that have lmms-eval; the development environment has not, see `test_lmms_eval.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import vtfast

TASK = "vtfast_scenes"
YAML = """
task: {task}
dataset_path: json
dataset_kwargs:
  data_files: {{"test": "{folder}/scenes.json"}}
test_split: test
output_type: generate_until
doc_to_visual: !function scenes.visual
doc_to_text: !function scenes.text
doc_to_messages: !function scenes.messages
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4, temperature: 0}}
process_results: !function scenes.right
metric_list:
  - metric: right
    aggregation: !function scenes.share
    higher_is_better: true
"""
FUNCTIONS = """
from PIL import Image

def visual(doc):
    return [Image.open(doc["picture"]).convert("RGB")]

def text(doc, options=None):
    return doc["question"]

def messages(doc, options=None):
    content = [{"type": "image", "url": visual(doc)[0]}, {"type": "text", "text": text(doc)}]
    return [{"role": "user", "content": content}]

def right(doc, said):
    return {"right": float(said[0].strip() == doc["answer"])}

def share(rows):
    return sum(rows) / len(rows)
"""


def write_task(folder: Path, task: str, n: int) -> None:
    """`scenes(n, 0, task)` in the form of a custom task of lmms-eval."""
    rows = []
    for i, (picture, question, answer) in enumerate(
        zip(*vtfast.toy.scenes(n, 0, task), strict=True)
    ):
        picture.save(folder / f"{i}.png")
        rows.append({"picture": f"{folder}/{i}.png", "question": question, "answer": answer})
    (folder / "scenes.json").write_text(json.dumps(rows))
    (folder / "scenes.py").write_text(FUNCTIONS)
    (folder / f"{TASK}.yaml").write_text(YAML.format(task=TASK, folder=folder))


def lmms_eval(folder: Path, model: str, **model_args: object) -> float:
    """The share of right answers that `python -m lmms_eval` tells."""
    command = [sys.executable, "-m", "lmms_eval", "--model", model, "--tasks", TASK]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out")]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in model_args.items())]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    told = max((folder / "out").rglob("*_results.json"), default=None)
    assert told is not None, done.stdout[-3000:] + done.stderr[-3000:]
    assert "in generating" not in done.stdout + done.stderr  # it goes on after an error
    found = json.loads(told.read_text())["results"][TASK]["right,none"]
    told.unlink()
    return found
