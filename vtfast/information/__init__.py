"""Up to which layer visual tokens carry information: scores, the horizon, and sweeps.

    found = information.score(model, inputs, answer)      # one batch: every layer, every token
    examples, bad_lines = information.read_examples("mine.jsonl")
    dataset = information.Dataset(processor, examples, "my task")
    h = information.horizon(model, dataset)               # a task: the layer, with its interval
    vtfast.patch(model, "divprune+random", horizon=h)     # a plan made from it
    information.sweep(model, dataset)                     # accuracy by method and layer

Definitions after arXiv 2512.07580; the rule for the horizon is ours, as the paper gives none.
"""

from vtfast.information.find_horizon import horizon
from vtfast.information.horizons import Horizon
from vtfast.information.maps import InformationMap, PictureScores
from vtfast.information.score_units import score
from vtfast.information.sweep_layers import sweep
from vtfast.information.sweeps import Sweep
from vtfast.inputs.data import Dataset, Example, answer_ids
from vtfast.inputs.data_files import read_examples

__all__ = [
    "Dataset",
    "Example",
    "Horizon",
    "InformationMap",
    "PictureScores",
    "Sweep",
    "answer_ids",
    "horizon",
    "read_examples",
    "score",
    "sweep",
]
