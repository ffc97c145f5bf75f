"""Train a bundled model from scratch: `python -m vtfast.toy.train --family llava --out DIR`.

One stage; 0.85 s a step on two free CPU cores, so about 25 minutes, or 1.2 s and 35 minutes for
`--family qwen` and `qwen3`, whose towers see four to six times the patches. What makes it short:

- seven questions share one picture (`toy/lessons.py`);
- Muon for matrices, AdamW for the rest;
- an auxiliary head names the glyph under each patch, its weight falling to zero at 90 % of the
  run. The model learns to read as soon as this head is good, instead of after a long plateau;
- fp32 attention as plain products: at 127 tokens the backward of fused attention is the slow part
  of a CPU step. Qwen's windows or pictures of one length are one such product, not one each.

The same seed gives the same weights on the same machine and versions; elsewhere rounding differs.
"""

import argparse
import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import sdpa_mask
from transformers.utils.logging import tqdm

from vtfast.errors import InputError
from vtfast.toy.evaluate import hardest_horizon, measure, table
from vtfast.toy.lessons import IGNORED, Batch, batches, exact_per_task, layout
from vtfast.toy.llava import LAYERS
from vtfast.toy.model import FAMILIES, load_folder, save
from vtfast.toy.scene import GLYPHS
from vtfast.toy.tasks import TASKS

MUON_RATE, ADAM_RATE = 2e-3, 1.5e-3
WARM_UP, FLAT, FLOOR = 80, 0.5, 0.02
GLYPH_END, GROUND_WEIGHT = 0.9, 0.15
ATTENTION = "vtfast_toy_training"


@dataclass(frozen=True)
class Settings:
    """What a run depends on: `layers` of the decoder, pictures per `batch`, scenes per task in
    the evaluation at the end (`n_eval`)."""

    family: str = "llava"
    steps: int = 1600
    seed: int = 1
    batch: int = 32
    layers: int = LAYERS
    n_eval: int = 500

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise InputError(f"there is no family={self.family!r}; choose: {known}")
        least = {"steps": 1, "batch": 1, "layers": FAMILIES[self.family].LEAST_LAYERS, "n_eval": 1}
        for name, count in least.items():
            if getattr(self, name) < count:
                raise InputError(f"{name}={getattr(self, name)} but at least {count} is expected")
        if self.seed < 0:
            raise InputError(f"seed={self.seed} but an int of at least 0 is expected")


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up over 80 steps, constant to half of the run, then linear down to 0.02 times."""
    done = step / steps
    decay = 1.0 if done < FLAT else max(FLOOR, (1 - done) / (1 - FLAT))
    return decay * min(1.0, (step + 1) / WARM_UP)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """fp32 attention as batched products; the mask is additive. Not causal by itself."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    with torch.autocast(query.device.type, enabled=False):
        scores = (query.float() * scaling) @ key.float().transpose(-1, -2)
        if attention_mask is not None:
            scores = scores + attention_mask
        mixed = scores.softmax(-1) @ value.float()
    return mixed.transpose(1, 2).contiguous(), None


class Trainer:
    """One run: the model, the glyph head, the optimizers, and the step that uses them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.family = FAMILIES[settings.family]
        self.model = self.family.build_model(settings.layers, settings.seed)
        torch.manual_seed(settings.seed)
        width = self.model.config.text_config.hidden_size
        self.glyph_head = torch.nn.Linear(width, 1 + len(GLYPHS), dtype=torch.float32)
        AttentionInterface.register(ATTENTION, _attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        self.model.set_attn_implementation(ATTENTION)
        self.family.prepare_training(self.model)
        self.layouts = {size: layout(self.family.positions(size)) for size in self.family.SIZES}
        matrices: list[torch.nn.Parameter] = []
        others = list(self.glyph_head.parameters())
        for name, weight in self.model.named_parameters():
            is_matrix = weight.ndim == 2 and "embed" not in name and "lm_head" not in name
            (matrices if is_matrix else others).append(weight)
        muon = torch.optim.Muon(
            matrices, lr=MUON_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        )
        adam = torch.optim.AdamW(others, ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.02)
        self.optimizers = ((muon, MUON_RATE), (adam, ADAM_RATE))

    def step(self, number: int, batch: Batch) -> dict[str, float]:
        """One update; returns loss, exact match per task and glyph accuracy before it."""
        for optimizer, rate in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate_factor(number, self.settings.steps)
        answered = batch.labels != IGNORED
        with torch.autocast("cpu", torch.bfloat16):
            hidden, seen = self._forward(batch)
            logits = self.model.lm_head(hidden[answered]).float()
            glyph_logits = self.glyph_head(seen).float()
        loss = cross_entropy(logits, batch.labels[answered])
        weight = max(0.0, 1 - number / self.settings.steps / GLYPH_END)
        (loss + weight * _glyph_loss(glyph_logits, batch.glyphs)).backward()
        weights = [w for w in self.model.parameters() if w.grad is not None]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer, _ in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        right = torch.ones_like(answered)
        right[answered] = logits.argmax(-1) == batch.labels[answered]
        glyphs_right = (glyph_logits.argmax(-1) == batch.glyphs)[batch.glyphs > 0]
        glyphs = glyphs_right.float().mean().item()
        return {"loss": loss.item(), **exact_per_task(right), "glyphs": glyphs}

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The decoder's states on the turns, and the visual features that the glyph head reads."""
        embed = self.model.get_input_embeddings()
        before, after = (
            embed(torch.tensor(part, dtype=torch.int64).expand(len(batch.ids), -1))
            for part in (self.family.BEFORE, self.family.AFTER)
        )
        height, width = batch.pixels.shape[2:]
        positions, mask = self.layouts[width, height]
        seen = self.family.see(self.model, batch.pixels)
        row = torch.cat((before, seen.visual, after, embed(batch.ids)), 1)
        states = self.family.decode(self.model, row, mask, positions, seen)
        return states[:, -batch.ids.shape[1] :], seen.glyphs


def _glyph_loss(logits: torch.Tensor, glyphs: torch.Tensor) -> torch.Tensor:
    """Cross entropy per patch; the many patches without a glyph count little."""
    weight = (glyphs > 0).float().clamp(min=GROUND_WEIGHT)
    loss = cross_entropy(logits.flatten(0, 1), glyphs.flatten(), reduction="none")
    return (loss * weight.flatten()).sum() / weight.sum()


def train(settings: Settings, folder: Path, progress: bool = True) -> dict[str, Any]:
    """Train, save to `folder`, measure what was saved, and record it there.

    Writes `training.json` (the returned dict) and `vtfast_horizon` in `config.json`: the deepest
    horizon of the tasks that have one; left out if none has.
    """
    trainer, started = Trainer(settings), perf_counter()
    mean: dict[str, float] = {}
    curve = []
    source = batches(settings.seed, settings.batch, trainer.family.SIZES)
    with tqdm(total=settings.steps, desc="training", unit="step", disable=not progress) as bar:
        for number in range(settings.steps):
            seen = trainer.step(number, next(source))
            mean = {key: 0.95 * mean.get(key, value) + 0.05 * value for key, value in seen.items()}
            bar.set_postfix_str(_short(mean), refresh=False)
            bar.update()
            if (number + 1) % max(1, settings.steps // 16) == 0:
                rounded = {key: round(value, 4) for key, value in mean.items()}
                curve.append({"step": number + 1, **rounded})
    source.close()
    seconds = perf_counter() - started
    trainer.model.set_attn_implementation("sdpa")
    save(trainer.model, folder)

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    card = {
        "settings": asdict(settings),
        "seconds": round(seconds),
        "versions": {"python": platform.python_version(), **versions},
        **measure(*load_folder(folder), settings.n_eval, settings.seed, progress),
        "training_curve": curve,
    }
    (folder / "training.json").write_text(json.dumps(card, indent=1) + "\n")
    record_horizon(folder / "config.json", hardest_horizon(card["horizon"]))
    return card


def record_horizon(path: Path, layer: int | None) -> None:
    """Put a measured horizon into a checkpoint's config.json; None leaves it alone."""
    if layer is not None:
        config = {**json.loads(path.read_text()), "vtfast_horizon": layer}
        path.write_text(json.dumps(config, indent=2) + "\n")


def _short(mean: dict[str, float]) -> str:
    """Running means for the progress bar, accuracies in percent."""
    shown = [f"{task} {100 * mean[task]:.0f}" for task in TASKS]
    return ", ".join([f"loss {mean['loss']:.3f}", *shown, f"glyphs {100 * mean['glyphs']:.0f} %"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vtfast.toy.train",
        description="Train a tiny vision-language model on drawn scenes, from scratch, and write a "
        "stock checkpoint folder. At the end every task is measured by greedy generation on fresh "
        "scenes, and the first layer that no longer needs the visual tokens is written into "
        "config.json as vtfast_horizon.",
        epilog="The bundled models: llava is --steps 1600 --seed 1, about 25 minutes on two free "
        "cores; llava-small is --layers 8 --steps 1300 --seed 2; qwen is --family qwen --layers 8 "
        "--steps 1700 --seed 3, about 35 minutes, on pictures of eight sizes; qwen3 is --family "
        "qwen3 --layers 8 --steps 1700 --seed 4, likewise. To try the whole pipeline: --out "
        "build/look --steps 3 --layers 2 --n-eval 10. On shared cores set OMP_WAIT_POLICY=PASSIVE: "
        "waiting threads then free their core.",
    )
    default = Settings()

    def add(name: str, kind: type, text: str) -> None:
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(
            f"--{name}", type=kind, default=value, metavar=kind.__name__.upper(), help=text
        )

    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder, new or empty")
    add("family", str, f"model class, of: {', '.join(FAMILIES)} (default %(default)s)")
    add("steps", int, "optimizer steps; the schedule spans them all (default %(default)s)")
    add("seed", int, "of the weights and of the pictures (default %(default)s)")
    add("batch", int, "pictures per step, seven questions each (default %(default)s)")
    add("layers", int, "decoder layers (default %(default)s)")
    add("n-eval", int, "scenes per task in the evaluation (default %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, or 2 for bad input."""
    arguments = vars(_parser().parse_args(argv))
    folder, quiet = arguments.pop("out"), arguments.pop("quiet")
    try:
        settings = Settings(**arguments)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"--out {folder} exists and is not an empty folder; name a new one")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    card = train(settings, folder, progress=not quiet)
    print(table(card))
    print(f"{folder}: accuracy in percent on {settings.n_eval} fresh scenes per task; L3 = without")
    print("visual tokens from decoder layer 3 on; horizon = first layer that costs <= 1 point")
    return 0


if __name__ == "__main__":
    sys.exit(main())
