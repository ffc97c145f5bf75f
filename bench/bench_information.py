"""Time scoring every visual token in three variants; count what sharing the prefix saves.

paper    one whole forward for every layer and unit, as the released code does it
padded   layer inputs cached once; the units of a layer as one padded batch of [prefix, unit, text]
packed   vtfast: the units as one packed batch of [unit, text], the prefix read through an index

On one scene of the bundled models, single tokens as units, the first token of the answer, fp32, one
thread; about two minutes a model. Where the scores differ by more than 1e-5 nothing is timed. Times
are medians of alternating rounds, peak memory that of tensors alive at once (`paper`: one run, and
its longest forward). Row-layers, hidden states times the layers they go through, are counted.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from time import perf_counter

import torch
import transformers
from prefills import memory_on_cpu, profiling
from report import RESULTS, markdown

import vtfast
from vtfast import Prune, information, toy
from vtfast.information.probe import Probe

RESULT = RESULTS / "information_cpu.json"
MODELS = ("llava", "llava-small", "qwen")
ROUNDS = 5
# layers, tokens before the picture, visual tokens, units, tokens after the picture
SHAPES = {
    "LLaVA-1.5-7B, 576 tokens in windows of 2 x 2": (32, 35, 576, 144, 30),
    "LLaVA-1.5-7B, 576 single tokens": (32, 35, 576, 576, 30),
    "Qwen2.5-VL-7B, 1296 tokens in windows of 2 x 2": (28, 15, 1296, 324, 30),
}
_kept: list[torch.Tensor] = []


@vtfast.register_method("bench-keep-this", scores=False, replace=True)
def keep_this(ctx: vtfast.methods.SelectionContext) -> torch.Tensor:
    """A method that keeps the one token the bench is scoring."""
    return _kept[-1]


def row_layers(layers: int, before: int, tokens: int, units: int, after: int) -> dict[str, int]:
    """Tokens times layers of each variant, the one full forward included where there is one."""
    size, length = tokens // units, before + tokens + after
    below = length * layers * (layers - 1) // 2  # what the paper's forwards run below the layer
    above = layers * (layers + 1) // 2
    short, text = before + size + after, before + after
    paper, once = units * (below + above * short) + below + above * text, length * layers
    packed = once + above * (units * (size + after) + text)
    return {"paper": paper, "padded": once + above * (units * short + text), "packed": packed}


class Scene:
    """One question to a model, and the three variants of scoring it; each gives [layers, units]."""

    def __init__(self, name: str) -> None:
        self.model, processor = toy.load(name)
        pictures, questions, answers = toy.scenes(1, 0, "code")
        text = toy.prompt(processor, questions[0])
        self.inputs = processor(images=pictures, text=text, return_tensors="pt")
        self.answer = information.answer_ids(processor.tokenizer, answers[0])[:1]
        self.text = self.model.model.language_model
        self.layers, self.length = len(self.text.layers), self.inputs["input_ids"].shape[1]
        (picture,) = self.probe().pictures
        self.columns, tokens = picture.columns, len(picture.columns)
        self.before, self.after = int(self.columns[0]), self.length - 1 - int(self.columns[-1])
        self.shape = (self.layers, self.before, tokens, tokens, self.after)

    def probe(self) -> Probe:
        return Probe(self.model, self.inputs, [self.answer], range(self.layers))

    def packed(self) -> torch.Tensor:
        found = information.score(self.model, self.inputs, self.answer, window=1, progress=False)
        return torch.from_numpy(found.of(0))

    @torch.no_grad()
    def paper(self, first: int = 0, units: int | None = None) -> torch.Tensor:
        """Scores from layer `first` on, of all units or of the first `units`."""
        lines = []
        for layer in range(first, self.layers):
            with vtfast.patch(self.model, [Prune(layer, "drop", 0)]):
                without, line = self._forward(), []
            with vtfast.patch(self.model, [Prune(layer, "bench-keep-this", 1)]):
                for unit in range(units or len(self.columns)):
                    _kept[:] = [torch.tensor([unit])]
                    line.append(self._forward() - without)
            lines.append(torch.cat(line))
        return torch.stack(lines)

    def _forward(self) -> torch.Tensor:
        return self._p(self.model(**self.inputs, use_cache=False).logits[:, -1])

    @torch.no_grad()
    def padded(self) -> torch.Tensor:
        probe, prefix = self.probe(), list(range(self.before))
        text = list(range(self.length - self.after, self.length))
        with_one = torch.tensor([[*prefix, column, *text] for column in self.columns])
        lines = []
        for layer in range(self.layers):
            p = []
            for index in (with_one, torch.tensor([prefix + text])):
                hidden = probe._states[layer][index]
                cos, sin = (t[index] for t in probe._rotary)
                for block in self.text.layers[layer:]:
                    hidden = block(hidden, attention_mask=None, position_embeddings=(cos, sin))
                p.append(self._p(self.model.lm_head(self.text.norm(hidden[:, -1]))))
            lines.append(p[0] - p[1])
        return torch.stack(lines)

    def _p(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.float().softmax(-1)[:, self.answer[0]].double()


def peak_bytes(run: Callable[[], object]) -> int:
    with profiling("cpu") as seen:
        run()
    return memory_on_cpu(seen)["peak_bytes"]


def measure(name: str) -> dict:
    """Parity, times, memory and row-layers of one model."""
    scene, start = Scene(name), perf_counter()
    slow = scene.paper()
    seconds = {"paper": [perf_counter() - start], "padded": [], "packed": []}
    error = max((slow - found).abs().max().item() for found in (scene.packed(), scene.padded()))
    if error > 1e-5:
        raise SystemExit(f"{name}: the variants differ by {error:.1e}; nothing timed")
    peaks = {variant: peak_bytes(getattr(scene, variant)) for variant in ("padded", "packed")}
    peaks["paper"] = peak_bytes(lambda: scene.paper(scene.layers - 1, units=1))  # the longest
    for number in range(ROUNDS):
        for variant in ("padded", "packed")[:: 1 if number % 2 else -1]:
            start = perf_counter()
            getattr(scene, variant)()
            seconds[variant].append(perf_counter() - start)
    medians = {variant: statistics.median(times) for variant, times in seconds.items()}
    found = {"shape": scene.shape, "largest_difference": error, "seconds": medians}
    return {**found, "peak_bytes": peaks, "row_layers": row_layers(*scene.shape)}


def table(result: dict) -> str:
    """As Markdown: a row per shape and variant."""
    lines = [["", "variant", "seconds", "peak memory", "row-layers", "of packed"]]
    counted = {name: {"row_layers": row_layers(*s)} for name, s in SHAPES.items()}
    measured = {f"toy-{name}, single tokens": row for name, row in result["models"].items()}
    for title, row in {**measured, **counted}.items():
        for variant, count in row["row_layers"].items():
            cells = ["", ""]
            if "seconds" in row:
                peak = f"{row['peak_bytes'][variant] / 1e6:.1f} MB"
                cells = [f"{row['seconds'][variant]:.2f}", peak]
            ratio = f"{count / row['row_layers']['packed']:.2f}"
            lines.append([title, variant, *cells, f"{count:,}", ratio])
            title = ""
    return markdown(lines, ["---", "---", *["--:"] * 4])


def versions(command: str) -> dict:
    found = {"command": command, "device": platform.processor() or platform.machine()}
    found |= {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    return found | {"vtfast": vtfast.__version__}


def main() -> int:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", choices=MODELS, help="measure this one alone (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"models": {}}
    for name in [args.model] if args.model else MODELS:
        result["models"][name] = measure(name)
    result |= versions("python bench/bench_information.py") | {"threads": 1}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
