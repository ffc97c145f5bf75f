"""The first half of `vtfast demo`: the bundled LLaVA answers six questions, full and pruned.

The model is trained, so its answers show what pruning does to meaning; with 64 visual tokens it is
too small to get faster. Speed is measured by the second half, `vtfast/cli/_prefill_race.py`.
"""

from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from vtfast.cli._kept_views import StageView, stage_views
from vtfast.inputs.checkpoints import quiet
from vtfast.patching import patch
from vtfast.plan import Plan
from vtfast.toy import TASKS, load, prompt
from vtfast.toy.scene import Scene
from vtfast.toy.words import LONGEST_ANSWER


@dataclass(frozen=True)
class Question:
    """One question about the scene and its true answer."""

    task: str
    text: str
    truth: str


@dataclass(frozen=True)
class Column:
    """The answers of the full or of a pruned model, and what they took.

    Attributes:
        keep: the average share of visual tokens asked for; None for the unpatched model.
        plan: of the pruned model.
        answers: one per question.
        average_tokens: visual tokens per picture, averaged over the decoder layers as they ran.
        flops_ratio: prefill arithmetic of the decoder as a share of the full model's, the average
            over the questions.
        stages: what the plan kept when the last question was asked; empty for the full model.
    """

    keep: float | None
    plan: Plan | None
    answers: tuple[str, ...]
    average_tokens: float
    flops_ratio: float
    stages: tuple[StageView, ...]

    @property
    def name(self) -> str:
        """The name of the column in tables and figures."""
        return "full" if self.keep is None else f"keep {self.keep:g}"


class Interview:
    """A scene, its six questions, and a model to ask.

    Args:
        model, processor: as `vtfast.toy.load` returns them.
        scene_seed: int ≥ 0, which scene.
    """

    def __init__(self, model: Any, processor: Any, scene_seed: int) -> None:
        scene = Scene.from_seed(scene_seed)
        self.picture: Image = scene.picture()
        self.questions = tuple(Question(task, *scene.question(task)) for task in TASKS)
        self.model, self._processor = model, processor
        self._inputs = processor(
            images=[[self.picture]] * len(TASKS),
            text=[prompt(processor, question.text) for question in self.questions],
            padding=True,
            return_tensors="pt",
        )
        self._visual = self._inputs["input_ids"] == model.config.image_token_id
        self.visual_tokens = int(self._visual[0].sum())
        self.num_layers: int = model.config.get_text_config().num_hidden_layers

    @classmethod
    def bundled(cls, name: str, scene_seed: int) -> "Interview":
        """With a bundled model, loaded without transformers' own progress bar."""
        with quiet():
            return cls(*load(name), scene_seed)

    def full(self) -> Column:
        """The answers of the model as it is."""
        return Column(None, None, self._answers(), float(self.visual_tokens), 1.0, ())

    def pruned(self, preset: str, keep: float, seed: int) -> Column:
        """The answers under a plan. Raises PlanError where the preset cannot meet `keep`."""
        with patch(self.model, preset, keep=keep, seed=seed, record=True) as handle:
            answers = self._answers()
        n_text = (self._inputs["attention_mask"].sum(1) - self.visual_tokens).tolist()
        config, n_visual = self.model.config, self.visual_tokens
        ratios = [handle.plan.flops_ratio(config, n_visual, n) for n in n_text]
        average = handle.report.average if handle.report else float(n_visual)
        columns = self._visual[-1].nonzero()[:, 0]
        views = stage_views(handle, columns, sample=-1)
        return Column(keep, handle.plan, answers, average, sum(ratios) / len(ratios), views)

    def _answers(self) -> tuple[str, ...]:
        ids = self.model.generate(**self._inputs, do_sample=False, max_new_tokens=LONGEST_ANSWER)
        said = ids[:, self._inputs["input_ids"].shape[1] :]
        return tuple(self._processor.batch_decode(said, skip_special_tokens=True))
