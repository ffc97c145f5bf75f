"""The cheapest plan that loses little enough, found on questions with known answers.

found = vtfast.tune(model, dataset, max_loss=0.01)
print(found)
found.plan.save("plan.json")
vtfast.patch(model, "plan.json")
"""

from vtfast.tuning.find_plan import METHODS, tune
from vtfast.tuning.results import Tried, Tuned

__all__ = ["METHODS", "Tried", "Tuned", "tune"]
