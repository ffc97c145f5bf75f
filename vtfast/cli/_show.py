"""What came of `vtfast run`, as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.text import Text

from vtfast import __version__
from vtfast.cli._ask import Answer
from vtfast.cli._terminal import table
from vtfast.inputs.checkpoints import TOY
from vtfast.inputs.prompts import Prompt
from vtfast.plan import Plan
from vtfast.report import Report

if TYPE_CHECKING:
    from vtfast.cli.run import Settings


@dataclass(frozen=True)
class Run:
    """One way to run the model; without `plan` and `report` the unpruned one."""

    name: str
    answer: Answer
    plan: Plan | None = None
    report: Report | None = None

    def timed(self, typical: Answer) -> "Run":
        """The same with the times of another answer."""
        first, step = typical.first_seconds, typical.token_ms
        return replace(self, answer=replace(self.answer, first_seconds=first, token_ms=step))


@dataclass(frozen=True)
class Outcome:
    """Everything there is to show.

    Attributes:
        model: as loaded.
        runs: the pruned run, last; the unpruned one before it if they were compared.
        rounds: how often each was timed once warm; 0 where the times are those of a first run.
    """

    settings: "Settings"
    model: Any
    prompt: Prompt
    runs: Sequence[Run]
    rounds: int

    @property
    def visual_tokens(self) -> int:
        """Of the prompt, before any pruning."""
        return len(self.prompt.columns)

    @property
    def layers(self) -> int:
        """Of the decoder."""
        return self.model.config.get_text_config().num_hidden_layers

    def per_layer(self, run: Run) -> list[int]:
        """Visual tokens that each decoder layer saw."""
        return list(run.report.tokens[0]) if run.report else [self.visual_tokens] * self.layers

    def average(self, run: Run) -> float:
        """Visual tokens, averaged over the layers."""
        return sum(self.per_layer(run)) / self.layers

    def flops_ratio(self, run: Run) -> float:
        """Prefill arithmetic of the decoder, as a share of the unpruned model's."""
        if run.plan is None:
            return 1.0
        config, prompt = self.model.config, self.prompt
        return run.plan.flops_ratio(config, prompt.pictures, prompt.text_tokens)

    @property
    def identical(self) -> bool | None:
        """Whether all answers are the same; None where there is one."""
        return len({run.answer.text for run in self.runs}) == 1 if self.rounds else None

    @property
    def notes(self) -> list[str]:
        """What the numbers do not say by themselves."""
        said, notes = self.runs[-1], []
        if self.rounds:
            notes.append(
                f"Times: median of {self.rounds} round{'s' * (self.rounds != 1)}, one after the "
                "other in changing order, both warmed up. The first token waits for the pictures' "
                "encoding too."
            )
        else:
            notes.append(
                "Times of a first run, with all that is done once; --compare warms up and takes "
                "medians. The first token waits for the pictures' encoding too."
            )
        if said.report:
            notes.append(f"Layout: {said.report.path} ({said.report.path_reason}).")
        if not all(run.answer.finished for run in self.runs):
            most = self.settings.max_new_tokens
            notes.append(f"Cut short: --max-new-tokens {most}.")
        if unknown := self.prompt.unknown_words():
            words = ", ".join(f'"{word}"' for word in unknown)
            notes.append(f"The model knows no such words as {words}.")
        if self.settings.model.startswith(TOY):
            notes.append("A toy shows what pruning does to meaning; it is too small to get faster.")
        return notes


def show(out: Console, outcome: Outcome) -> None:
    """Print the table and what has to be said with it."""
    model, settings, runs = outcome.model, outcome.settings, outcome.runs
    where = f"{model.device}"
    if model.device.type == "cpu":
        threads = torch.get_num_threads()
        where = f"CPU, {threads} thread{'s' * (threads != 1)}"
    out.print(
        f"\n{settings.model}: {outcome.layers} layers, {outcome.visual_tokens} visual and "
        f"{outcome.prompt.text_tokens} text tokens; {_dtype(model)}, {where}",
        style="bold",
    )
    plan = runs[-1].plan
    assert plan is not None
    out.print("Plan " + str(plan).partition("\n")[0], style="bold")
    names = [run.name for run in runs]
    if compared := len(runs) > 1:
        answers = table(*names, wraps=[0, 1])
        answers.add_row(*(Text(printable(run.answer.text)) for run in runs))
        out.print(answers)
        if outcome.identical:
            out.print("The answers are the same.")
        else:
            out.print("The answers differ.", style="bold red")
        names.append(" / ".join(names))
    shown = table("", *names)
    for label, cells, values in _rows(outcome):
        ratio = ""
        if compared and values and all(values):
            ratio = f"{values[0] / values[-1]:.2f}x"
        shown.add_row(label, *cells, *([ratio] if compared else []))
    out.print(shown)
    for note in outcome.notes:
        out.print(note)
    if settings.out:
        out.print(f"What was kept of the pictures: {settings.out}", soft_wrap=True)


def _rows(outcome: Outcome) -> list[tuple[str, list[str], list[Any]]]:
    """Label, a cell per run, and the values to compare, smaller being better."""
    runs, answers = outcome.runs, [run.answer for run in outcome.runs]
    plan, left = runs[-1].plan, outcome.per_layer(runs[-1])
    assert plan is not None
    full = [str(outcome.visual_tokens)] * len(runs[:-1])
    rows: list[tuple[str, list[str], list[Any]]] = [
        (f"tokens from layer {s.layer}, {s.method}", [*full, str(left[s.layer])], [])
        for s in plan.stages
    ]
    averages = [outcome.average(run) for run in runs]
    rows.append(("visual tokens, average of layers", [f"{a:.1f}" for a in averages], averages))
    flops = [outcome.flops_ratio(run) for run in runs]
    rows.append(("prefill FLOPs, of unpruned", [f"{100 * f:.0f} %" for f in flops], flops))
    seconds = [a.first_seconds for a in answers]
    rows.append(("time to first token", [_time(s) for s in seconds], seconds))
    steps = [a.token_ms for a in answers]
    shown = ["" if ms is None else _time(ms / 1000) for ms in steps]
    rows.append(("per further token", shown, steps))
    caches = [a.cache_bytes for a in answers]
    rows.append(("KV cache", [_size(b) for b in caches], caches))
    rows.append(("new tokens", [str(a.tokens) for a in answers], []))
    return rows


def record(outcome: Outcome) -> dict[str, Any]:
    """What the table shows, and more, for `--json`."""
    model, prompt, settings = outcome.model, outcome.prompt, outcome.settings
    plan = outcome.runs[-1].plan
    assert plan is not None
    return {
        "version": __version__,
        "model": settings.model,
        "model_class": type(model).__name__,
        "device": str(model.device),
        "dtype": _dtype(model),
        "layers": outcome.layers,
        "prompt": settings.prompt,
        "images": [str(path) for path in settings.images],
        "video": [str(path) for path in settings.video],
        "visual_tokens": outcome.visual_tokens,
        "visual_tokens_per_picture": prompt.pictures,
        "text_tokens": prompt.text_tokens,
        "plan": {
            "name": plan.name,
            "keep": plan.keep,
            "horizon": plan.horizon,
            "horizon_source": plan.horizon_source,
            "seed": settings.patching["seed"],
            "stages": [{"layer": s.layer, "method": s.method, "keep": s.keep} for s in plan.stages],
        },
        "runs": [
            {
                "name": run.name,
                "answer": run.answer.text,
                "new_tokens": run.answer.tokens,
                "finished": run.answer.finished,
                "visual_tokens_per_layer": outcome.per_layer(run),
                "visual_tokens_average": outcome.average(run),
                "flops_ratio": outcome.flops_ratio(run),
                "seconds_to_first_token": run.answer.first_seconds,
                "ms_per_further_token": run.answer.token_ms,
                "kv_cache_bytes": run.answer.cache_bytes,
                "path": run.report and run.report.path,
                "path_reason": run.report and run.report.path_reason,
            }
            for run in outcome.runs
        ],
        "identical": outcome.identical,
        "timed_rounds": outcome.rounds,
        "notes": outcome.notes,
        "picture": settings.out and str(settings.out),
    }


def printable(text: str) -> str:
    """Without what would move a terminal's cursor or change its colours."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _size(size: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / 1e3:.0f} kB"
