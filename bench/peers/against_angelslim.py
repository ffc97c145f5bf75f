"""vtfast beside AngelSlim on a CPU: prefill, selection, right answers, unequal batches.

    python bench/peers/against_angelslim.py --angelslim CLONE --python PYTHON --json FILE

CLONE is a clone of github.com/Tencent/AngelSlim; PYTHON is an interpreter with what its
token_compressor imports and a transformers that it runs with. Nothing is installed. Both sides have
the same weights and take turns, with one thread each. Answers are compared with those of the
unpatched model on the whole sequence, with the tokens masked that the side itself dropped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

import machine
from model_oracle import Oracle
from random_models import MID, inputs_of

import vtfast
from vtfast import Prune

# AngelSlim's FastV drops behind layer 0, which is before layer 1.
STAGES = {"divprune": (0, "diversity"), "fastv": (1, "topk")}
TOYS = (("llava", "llava"), ("qwen", "qwen2_5_vl"))  # bundled model, folder of AngelSlim's settings
KEEP, STEPS, SCENES = 0.5, 3, 40  # a code has three characters
BATCH = ("digit", "code", "shape", "count")  # tasks, whose questions differ in length
SIZES = {"llava": ((96, 96),) * 4, "qwen": ((96, 96), (120, 96), (96, 144), (120, 120))}  # pixels
GENERATE = {"do_sample": False, "max_new_tokens": STEPS, "min_new_tokens": STEPS,
            "return_dict_in_generate": True, "output_logits": True}  # fmt: skip
SIDES = ("vtfast", "angelslim")
HELP = ("pass --angelslim a clone of github.com/Tencent/AngelSlim and --python an interpreter with "
        "transformers 5.6 to 5.8, torch, datasets and PyYAML")  # fmt: skip


class Peer:
    """The other interpreter; RuntimeError where AngelSlim has raised an error."""

    def __init__(self, python: str, clone: str, folder: Path) -> None:
        script = Path(__file__).with_name("angelslim_side.py")
        options: dict[str, Any] = {"stderr": subprocess.DEVNULL, "text": True}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([python, script, clone], **pipes, **options)
        self.inputs, self.out = str(folder / "inputs"), str(folder / "out")

    def ask(self, do: str, **request: object) -> Any:
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline() or '{"error": "it has ended"}')
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["result"]

    def pruned(self, toy: str, family: str, method: str) -> None:
        self.ask("load", folder=str(machine.ROOT / "vtfast/toy/checkpoints" / toy))
        self.ask("prune", family=family, method=method, keep=KEEP)

    def answer(self, inputs: dict) -> tuple[Tensor, Tensor, Tensor]:
        torch.save(inputs, self.inputs)
        self.ask("answer", inputs=self.inputs, options=GENERATE, out=self.out)
        return torch.load(self.out)


def prefill(peer: Peer, model: Any, rounds: int, folder: Path) -> list[dict]:
    """Shares of the unpatched prefill of the same side in the same round, and selection in ms."""
    inputs, rows = inputs_of(model, (64,), MID.tokens), []
    torch.save(inputs, peer.inputs)
    model.save_pretrained(folder / "mid")
    peer.ask("load", folder=str(folder / "mid"))

    def milliseconds() -> float:
        start = process_time()
        model(**inputs, use_cache=True, logits_to_keep=1)
        return (process_time() - start) * 1e3

    def ours(method: str, keep: float) -> tuple[float, ...]:
        whole = milliseconds()
        with vtfast.patch(model, [Prune(*STAGES[method], keep)], record=True) as handle:
            return whole, milliseconds() / whole, sum(handle.report.select_ms.values())

    def theirs(method: str, keep: float) -> tuple[float, ...]:
        whole, _ = peer.ask("prefill", inputs=peer.inputs)
        plan = {"family": "llava", "method": method, "keep": keep}
        pruned, select = peer.ask("prefill", inputs=peer.inputs, **plan)
        return whole, pruned / whole, select

    names = ("unpatched_ms", "share", "select_ms")
    for method, keep in ((method, keep) for method in STAGES for keep in (0.5, 0.25)):
        taken = [(ours(method, keep), theirs(method, keep)) for _ in range(rounds + 1)]
        row: dict = {"method": method, "keep": keep}
        for i, side in enumerate(SIDES):  # without the first round, which warms up
            of = {name: [one[i][j] for one in taken[1:]] for j, name in enumerate(names)}
            row[side] = {name: machine.summary(samples) for name, samples in of.items()}
        rows.append(row)
    return rows


def answers(peer: Peer, toy: str, family: str, method: str) -> dict:
    """How far logits are from those of the masked sequence, and how many answers are right."""
    model, processor = vtfast.toy.load(toy)
    peer.pruned(toy, family, method)
    row: dict = {"model": toy, "method": method, "keep": KEEP, "prompts": SCENES, "same_picks": 0}
    row |= {s: dict.fromkeys(("first", "later", "as_masked", "right"), 0) for s in SIDES}
    for picture, question, truth in zip(*vtfast.toy.scenes(SCENES, 5, "code"), strict=True):
        inputs = prompts(processor, [picture], [question])
        with vtfast.patch(model, [Prune(*STAGES[method], KEEP)], record=True) as handle:
            made = model.generate(**inputs, **GENERATE)
            ((layer, (kept,)),) = handle.report.kept.items()
        visual = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
        tokens, logits, mask = peer.answer(inputs)
        stayed = kept, visual[mask[0, visual]]
        row["same_picks"] += torch.equal(*stayed)
        got = (made.sequences, torch.stack(made.logits, 1)), (tokens, logits)
        for side, picks, (said, scores) in zip(SIDES, stayed, got, strict=True):
            said, gone = said[:, -STEPS:], visual[~torch.isin(visual, picks)]
            expected = Oracle(model, inputs).logits({layer: [gone]}, said[:, :-1])[:, -STEPS:]
            off, found = (scores - expected).abs().amax((0, 2)).tolist(), row[side]
            found["first"] = max(found["first"], off[0])
            found["later"] = max(found["later"], *off[1:])
            found["as_masked"] += torch.equal(said, expected.argmax(-1))
            found["right"] += processor.batch_decode(said)[0].split() == truth.split()
    return row


def prompts(processor: Any, pictures: list, questions: list) -> dict[str, Tensor]:
    text = [vtfast.toy.prompt(processor, question) for question in questions]
    return dict(processor(text=text, images=pictures, return_tensors="pt", padding=True))


def unequal(peer: Peer, toy: str, family: str) -> dict:
    """A padded batch: how far its samples' logits are from those they have alone, or a refusal."""
    model, processor = vtfast.toy.load(toy)
    tasks = zip(BATCH, SIZES[toy], strict=True)
    each = [vtfast.toy.scenes(1, 5, task, [size])[:2] for task, size in tasks]
    batch = prompts(processor, *map(sum, zip(*each, strict=True), ([], [])))
    row: dict = {"model": toy, "samples": len(each), "vtfast": {}, "angelslim": "ran"}
    for path in ("padded", "packed"):
        with vtfast.patch(model, "divprune", keep=KEEP, path=path):
            got, *alone = (
                model.generate(**inputs, **GENERATE).logits[0]
                for inputs in (batch, *(prompts(processor, *one) for one in each))
            )
        row["vtfast"][path] = (got - torch.cat(alone)).abs().max().item()
    peer.pruned(toy, family, "divprune")
    try:
        peer.answer(batch)
    except RuntimeError as error:
        row["angelslim"] = str(error)
    return row


@torch.no_grad()
def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    for option in ("--angelslim", "--python", "--json"):
        parser.add_argument(option, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        try:
            peer = Peer(options.python, options.angelslim, Path(name))
            facts = peer.ask("versions")
        except (RuntimeError, OSError) as error:
            print(f"error: cannot import AngelSlim ({error}); {HELP}", file=sys.stderr)
            return 2
        git = ["git", "-C", options.angelslim, "rev-parse", "HEAD"]
        facts["commit"] = subprocess.run(git, capture_output=True, text=True).stdout.strip()
        found: dict = {**machine.header("cpu"), "peer": facts}
        found["unequal"] = [unequal(peer, *toy) for toy in TOYS]
        found["answers"] = [answers(peer, *toy, method) for toy in TOYS for method in STAGES]
        model = MID.build("cpu", torch.float32)
        found["prefill"] = prefill(peer, model, options.rounds, Path(name))
    Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
