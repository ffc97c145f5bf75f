"""Data sets for the tiny models, with what `vtfast.information` needs of one, and no processor."""

from dataclasses import dataclass

from tiny_models import FAMILIES
from tiny_parts import Picture, Sample

from vtfast.inputs.data import Batch, Skipped

ANSWERS = ([17, 2], [40, 8, 2], [23, 2], [61, 54, 2], [33, 2])


@dataclass
class TinyData:
    """Random questions and answers about one small picture each; the end mark is token 2."""

    name: str = "llava"
    size: int = len(ANSWERS)
    task: str = "guessing"
    skip_bad: bool = False
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return self.size

    @property
    def samples(self) -> list[Sample]:
        grid = (1, 4, 6)
        parts = [[2 + i % 3, Picture(grid, seed=i), 3] for i in range(self.size)]
        return FAMILIES[self.name].samples(*parts, seed=1)

    def batch(self, indices, device="cpu") -> Batch:
        chosen = [self.samples[i] for i in indices]
        answers = [list(ANSWERS[i % len(ANSWERS)]) for i in indices]
        return Batch(FAMILIES[self.name].batch(chosen), answers, [len(a) - 1 for a in answers])

    def name_of(self, index: int) -> str:
        return f"guess {index}"

    def keys(self) -> list[str]:
        return [f"{self.name} {index}" for index in range(self.size)]
