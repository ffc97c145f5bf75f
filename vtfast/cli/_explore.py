"""Run `vtfast score`, `vtfast horizon` and `vtfast sweep`: tables on stdout, or JSON, and pictures.

Importing this module is light. torch and transformers come once the options are known to be sound.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vtfast.cli._terminal import consoles, loading_libraries, table, working
from vtfast.errors import InputError
from vtfast.inputs.pictures import open_picture

if TYPE_CHECKING:
    from vtfast.information import Dataset, Horizon, InformationMap, Sweep
    from vtfast.inputs.checkpoints import Checkpoint

_SAMPLES = 100  # of the bundled scenes, which never end
_BAD_SHOWN = 3
_METHODS_SHOWN = 4  # side by side, in 80 columns


@dataclass(frozen=True)
class Source:
    """Where questions and true answers come from: one of `task`, `data` and `own` (pictures,
    question, answer)."""

    task: str | None
    data: Path | None
    samples: int | None
    seed: int
    skip_bad: bool
    own: tuple[tuple[Path, ...], str, str] | None = None


@dataclass(frozen=True)
class Study:
    """What the three commands share."""

    model: str
    source: Source
    layers: tuple[int, ...] | None
    window: int | None
    per: str
    out: Path | None
    as_json: bool
    device: str
    dtype: str
    log: Path | None

    @property
    def options(self) -> dict[str, Any]:
        """For the functions of `vtfast.information`."""
        return {"layers": self.layers, "window": self.window, "per": self.per}


def run_score(study: Study, sample: int) -> None:
    """The whole of `vtfast score`. Raises VTFastError for what the user can put right."""
    with prepared(study) as (model, data, out, err):
        if sample >= len(data):
            raise InputError(f"--sample {sample}: there are {len(data)}; count from 0")
        from vtfast import information

        told = data.batch([sample], model.device)
        layers = study.layers or range(model.config.get_text_config().num_hidden_layers)
        with working(err, "scoring", len(layers)) as tick:
            found = information.score(
                model,
                told.inputs,
                told.answers[0][: told.lengths[0]],
                progress=tick,
                **study.options,
            )
        if study.out:
            pictures = [data.pictures(sample)[p.number] for p in found.pictures]
            _saving(study.out, lambda path: found.draw(path, pictures))
        example = data.examples[sample]
        if study.as_json:
            about = {"model": study.model, "question": example.question, "answer": example.answer}
            print(json.dumps({**about, **found.record()}))
            return
        out.print(f"{study.model}, {example.question!r}, answer {example.answer!r}", style="bold")
        _show_scores(out, found)
        _say_where(out, study)


def run_horizon(study: Study, maps: int, tolerance: float) -> None:
    """The whole of `vtfast horizon`."""
    with prepared(study) as (model, data, out, err):
        from vtfast import information

        with working(err, data.task, len(data)) as tick:
            found = information.horizon(
                model,
                data,
                maps=maps,
                tolerance=tolerance,
                log=study.log,
                progress=tick,
                **study.options,
            )
        finish(study, out, found, _show_horizon)


def run_sweep(
    study: Study, methods: list[str], keep: list[float], seeds: int, scores: bool
) -> None:
    """The whole of `vtfast sweep`."""
    with prepared(study) as (model, data, out, err):
        from vtfast import information

        with working(err, data.task, len(data)) as tick:
            found = information.sweep(
                model,
                data,
                methods,
                keep=keep,
                seeds=seeds,
                retained=scores,
                log=study.log,
                progress=tick,
                **study.options,
            )
        finish(study, out, found, _show_sweep)


@contextmanager
def prepared(study: Study) -> Iterator[tuple[Any, "Dataset", Console, Console]]:
    """The model, the questions, stdout and stderr."""
    out, err = consoles()
    with loading_libraries(err):
        import torch

        from vtfast import information  # noqa: F401 (so that nothing fails to load later)
        from vtfast.inputs.checkpoints import device_named, find, quiet

    device = device_named(study.device)
    with quiet(), working(err, f"looking at {study.model}"):
        checkpoint = find(study.model)
        data = _questions(study.source, checkpoint, err)
    _check_out(study, data)
    try:
        with quiet(bars=err.is_terminal):
            model = checkpoint.weights(device, study.dtype)
        with quiet():
            yield model, data, out, err
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(".")[0]
        raise InputError(
            f"--model {study.model} does not fit: {reason}; pass --dtype bfloat16 or --device cpu"
        ) from None


def _questions(source: Source, checkpoint: "Checkpoint", err: Console) -> "Dataset":
    from vtfast.information import Dataset, Example, read_examples

    processor, scenes = checkpoint.processor, checkpoint.toy is not None
    if source.own:
        paths, question, answer = source.own
        images = tuple(open_picture(path) for path in paths)
        return Dataset(processor, [Example(images, question, answer, "--image")], "your question")
    if source.task:
        from vtfast.toy.evaluate import dataset
        from vtfast.toy.model import family_of

        n = source.samples or _SAMPLES
        sizes = family_of(checkpoint.toy).SIZES if scenes else ((96, 96),)
        return dataset(processor, source.task, n, source.seed, sizes, ends=scenes)
    assert source.data is not None
    examples, bad = read_examples(source.data, processor.tokenizer)
    if bad:
        listed = "; ".join(f"line {line.number}: {line.reason}" for line in bad[:_BAD_SHOWN])
        if len(bad) > _BAD_SHOWN:
            listed += f"; and {len(bad) - _BAD_SHOWN} more"
        if not source.skip_bad:
            raise InputError(f"--data {source.data}, {listed}; mend them or pass --skip-bad")
        err.print(f"{source.data}: skipped {listed}", markup=False, highlight=False)
    return Dataset(processor, examples[: source.samples], source.data.stem)


def _check_out(study: Study, data: "Dataset") -> None:
    """Nothing that is read is written over, neither by the picture nor by the JSON beside it."""
    if study.out is None:
        return
    own = study.source.own[0] if study.source.own else ()
    files = [image for example in data.examples for image in example.images]
    read = [study.source.data, study.log, *own, *(f for f in files if isinstance(f, Path))]
    taken = {path.resolve() for path in read if path is not None}
    for target in (study.out, study.out.with_suffix(".json")):
        if target.resolve() in taken:
            raise InputError(f"--out {study.out} would write over {target}; pass another name")


def finish(
    study: Study, out: Console, found: Any, show: Callable[[Console, str, Any], None]
) -> None:
    if study.out:
        _saving(study.out, found.draw)
    if study.as_json:
        print(json.dumps({"model": study.model, **found.record()}))
        return
    show(out, study.model, found)
    _say_where(out, study)


def _saving(path: Path, draw: Callable[[Path], None]) -> None:
    try:
        draw(path)
    except OSError as error:
        reason = f"cannot write {path}: {error.strerror}; pass another --out"
        raise InputError(reason) from None


def _say_where(out: Console, study: Study) -> None:
    if study.out:
        out.print(f"Drawn to {study.out}, with its JSON beside it.", soft_wrap=True)


def _show_scores(out: Console, found: "InformationMap") -> None:
    shown = table("layer", "p without", "best unit", "mean", "units above 0.01", wraps=())
    for i, layer in enumerate(found.layers):
        scores = found.of(0)[i]
        cells = (found.p_without[i, 0], scores.max(), scores.mean())
        row = [str(layer), *(f"{round(x, 3) + 0.0:.3f}" for x in cells)]
        shown.add_row(*row, f"{(scores > 0.01).sum()} of {len(scores)}")
    out.print(shown)
    out.print(f"p of the answer with every visual token: {found.p_full[0]:.3f}")


def _show_horizon(out: Console, model: str, found: "Horizon") -> None:
    low, high = ("none" if end is None else end for end in found.interval)
    out.print(f"{model} on {found.task}: {found.verdict}", style="bold")
    out.print(
        f"{found.samples} samples, {found.maps} with scores; in {100 * found.confidence:g} % of "
        f"resampled data between {low} and {high}. Scores of units and losses, in points:"
    )
    names = {"information": "mean", "absolute": "mean |score|"}
    names |= {"p_loss": "p lost", "accuracy_loss": "accuracy lost"}
    columns = [name for name in names if name in found.curves]
    wraps = range(1, 1 + len(columns))
    shown = table("layer", *(names[name] for name in columns), wraps=wraps)
    for i, layer in enumerate(found.layers):
        cells = []
        for name in columns:
            curve = found.curves[name]
            points = (round(100 * part[i], 1) + 0.0 for part in (curve.mean, curve.low, curve.high))
            mean, low_, high_ = (f"{x:.1f}" for x in points)
            cells.append(mean if name == "information" else f"{mean} [{low_}, {high_}]")
        shown.add_row(str(layer), *cells)
    out.print(shown)
    full, p = found.accuracy_full.mean[0], found.p_full.mean[0]
    out.print(f"With every visual token: accuracy {100 * full:.1f} %, p {100 * p:.1f} %.")
    for note in found.notes:
        out.print(note)


def _show_sweep(out: Console, model: str, found: "Sweep") -> None:
    out.print(f"{model} on {found.task}, {found.samples} samples: accuracy in %", style="bold")
    methods = list(dict.fromkeys(row.method for row in found.rows))
    for keep in dict.fromkeys(row.keep for row in found.rows):
        out.print(f"{100 * keep:g} % kept from the layer on:")
        for start in range(0, len(methods), _METHODS_SHOWN):
            some = methods[start : start + _METHODS_SHOWN]
            shown = table("layer", "none", *some, wraps=())
            for i, layer in enumerate(found.layers):
                cells = [f"{100 * found.without.mean[i]:.1f}"]
                for row in (found.of(method, keep)[i] for method in some):
                    spread = f" ±{100 * row.spread:.1f}" if len(row.seeds) > 1 else ""
                    mean, low, high = (100 * x for x in (row.accuracy, row.low, row.high))
                    cells.append(f"{mean:.1f}{spread}\n({low:.0f} to {high:.0f})")
                shown.add_row(str(layer), *cells)
            out.print(shown)
    out.print(f"With every visual token: {100 * found.accuracy_full.mean[0]:.1f} %.")
    if any(len(row.seeds) > 1 for row in found.rows):
        out.print("±: standard deviation over the seeds; brackets: over the samples.")
