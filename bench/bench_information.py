"""What scoring every visual token costs, three ways, and what sharing the prefix buys.

    python bench/bench_information.py              # about two minutes a model on a free core
    python bench/bench_information.py --model llava-small

paper    one whole forward for every layer and unit, as the released code does it
padded   layer inputs cached once; the units of a layer as one padded batch of [prefix, unit, text]
packed   vtfast: the units as one packed batch of [unit, text], the prefix read through an index

All three on one scene of the bundled models, single tokens as units, the first token of the answer,
fp32, one thread. Parity first: where the scores differ by more than 1e-5 nothing is timed. Times
are medians of alternating rounds (`paper`: one run). Peak memory is of tensors alive at once, by
torch's profiler (`paper`: of its longest forward, as it runs one at a time). Row-layers, rows of
hidden states times decoder layers they go through, are counted, for the toys and for the shapes of
7B models; nothing was run on those.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from time import perf_counter

import torch
import transformers

import vtfast
from vtfast import Prune, information, toy
from vtfast.information.probe import Probe

RESULT = Path(__file__).resolve().parent / "results" / "information_cpu.json"
MODELS = ("llava", "llava-small", "qwen")
ROUNDS = 5
# layers, rows before the picture, visual tokens, units, rows after the picture
SHAPES = {
    "LLaVA-1.5-7B, 576 tokens in windows of 2 x 2": (32, 35, 576, 144, 30),
    "LLaVA-1.5-7B, 576 single tokens": (32, 35, 576, 576, 30),
    "Qwen2.5-VL-7B, 1296 tokens in windows of 2 x 2": (28, 15, 1296, 324, 30),
}
_kept: list[torch.Tensor] = []


@vtfast.register_method("bench-keep-this", scores=False, replace=True)
def keep_this(ctx: vtfast.methods.SelectionContext) -> torch.Tensor:
    """The one token the bench is at."""
    return _kept[-1]


def row_layers(layers: int, before: int, tokens: int, units: int, after: int) -> dict[str, int]:
    """Rows times layers of each way, the one full forward included where there is one."""
    size, length = tokens // units, before + tokens + after
    below = length * layers * (layers - 1) // 2  # rows the paper's forwards run below the layer
    above = layers * (layers + 1) // 2
    short, text = before + size + after, before + after
    return {
        "paper": units * (below + above * short) + below + above * text,
        "padded": length * layers + above * (units * short + text),
        "packed": length * layers + above * (units * (size + after) + text),
    }


class Scene:
    """One question to a model, and the three ways to score it; each gives [layers, units]."""

    def __init__(self, name: str) -> None:
        self.model, processor = toy.load(name)
        pictures, questions, answers = toy.scenes(1, 0, "code")
        text = toy.prompt(processor, questions[0])
        self.inputs = processor(images=pictures, text=text, return_tensors="pt")
        self.answer = information.answer_ids(processor.tokenizer, answers[0])[:1]
        self.text = self.model.model.language_model
        self.layers = len(self.text.layers)
        self.probe = Probe(self.model, self.inputs, [self.answer], range(self.layers))
        (picture,) = self.probe.pictures
        self.columns = picture.columns
        first, last, end = self.columns[0], self.columns[-1], self.inputs["input_ids"].shape[1]
        self.shape = (self.layers, int(first), len(self.columns), len(self.columns))
        self.shape += (int(end - last - 1),)

    def packed(self) -> torch.Tensor:
        found = information.score(self.model, self.inputs, self.answer, window=1, progress=False)
        return torch.from_numpy(found.of(0))

    @torch.no_grad()
    def paper(self, first: int = 0, units: int | None = None) -> torch.Tensor:
        """From layer `first` on, of all units or the first ones."""
        lines = []
        for layer in range(first, self.layers):
            with vtfast.patch(self.model, [Prune(layer, "drop", 0)]):
                without = self._p(self.model(**self.inputs, use_cache=False).logits[:, -1])
            line = []
            with vtfast.patch(self.model, [Prune(layer, "bench-keep-this", 1)]):
                for unit in range(units or len(self.columns)):
                    _kept[:] = [torch.tensor([unit])]
                    logits = self.model(**self.inputs, use_cache=False).logits[:, -1]
                    line.append(self._p(logits) - without)
            lines.append(torch.cat(line))
        return torch.stack(lines)

    @torch.no_grad()
    def padded(self) -> torch.Tensor:
        probe = Probe(self.model, self.inputs, [self.answer], range(self.layers))
        before = self.shape[1]
        length = self.inputs["input_ids"].shape[1]
        outside = [*range(before), *range(self.columns[-1] + 1, length)]
        rows = torch.tensor([[*range(before), c, *outside[before:]] for c in self.columns])
        lines = []
        for layer in range(self.layers):
            p = []
            for index in (rows, torch.tensor([outside])):
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
    """The most tensor memory alive at once while something runs, above what was there before."""
    with torch.profiler.profile(profile_memory=True) as seen:
        run()
    events = seen.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return max(accumulate(size for _, size in sorted(changes)))


def measure(name: str) -> dict:
    """Parity, times, memory and row-layers of one model."""
    scene = Scene(name)
    start = perf_counter()
    slow = scene.paper()
    seconds = {"paper": [perf_counter() - start], "padded": [], "packed": []}
    error = max((slow - found).abs().max().item() for found in (scene.packed(), scene.padded()))
    if error > 1e-5:
        raise SystemExit(f"{name}: the ways differ by {error:.1e}; nothing timed")
    peaks = {way: peak_bytes(getattr(scene, way)) for way in ("padded", "packed")}
    peaks["paper"] = peak_bytes(lambda: scene.paper(scene.layers - 1, units=1))  # the longest
    for number in range(ROUNDS):
        for way in ("padded", "packed")[:: 1 if number % 2 else -1]:
            start = perf_counter()
            getattr(scene, way)()
            seconds[way].append(perf_counter() - start)
    return {
        "shape": scene.shape,
        "largest_difference": error,
        "seconds": {way: statistics.median(times) for way, times in seconds.items()},
        "peak_bytes": peaks,
        "row_layers": row_layers(*scene.shape),
    }


def table(result: dict) -> str:
    """As Markdown: a row per shape."""
    lines = [
        "| | way | seconds | peak memory | row-layers | of packed |",
        "|---|---|--:|--:|--:|--:|",
    ]
    counted = {name: {"row_layers": row_layers(*s)} for name, s in SHAPES.items()}
    measured = {f"toy-{name}, single tokens": row for name, row in result["models"].items()}
    for title, row in {**measured, **counted}.items():
        for way, rows in row["row_layers"].items():
            seconds, peak = row.get("seconds", {}).get(way), row.get("peak_bytes", {}).get(way)
            cells = [
                title,
                way,
                "" if seconds is None else f"{seconds:.2f}",
                "" if peak is None else f"{peak / 1e6:.1f} MB",
                f"{rows:,}",
                f"{rows / row['row_layers']['packed']:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
            title = ""
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, help="measure this one alone (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"models": {}}
    for name in [args.model] if args.model else MODELS:
        result["models"][name] = measure(name)
    result |= {
        "command": "python bench/bench_information.py",
        "device": platform.processor() or platform.machine(),
        "threads": 1,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "vtfast": vtfast.__version__,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
