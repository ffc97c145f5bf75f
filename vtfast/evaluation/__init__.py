"""Compare plans on questions with known answers: what they cost in accuracy and what they save.

    found = vtfast.evaluate(model, dataset, ["divprune+random", "uniform"], keep=[0.5, 0.25])
    print(found)

Under torchrun or `accelerate launch` the questions are shared out over the processes, and each
returns the same table.
"""

from vtfast.evaluation.compare import evaluate, named_plan
from vtfast.evaluation.results import Comparison, Row, wilson

__all__ = ["Comparison", "Row", "evaluate", "named_plan", "wilson"]
