"""What methods see of the vision scores: a method that notes them."""

from model_runs import logits_of

import vtfast
from vtfast import Prune

PLAN = [Prune(0, "test-vision", 0.5), Prune(3, "test-vision", 0.25)]
_seen = []


@vtfast.register_method("test-vision", scores=False, vision_scores=True)
def _look(context):
    _seen.append(context.vision_scores.split(context.segments.lengths))
    return vtfast.ops.topk_select(context.vision_scores, context.segments, context.keep)


def seen_by_methods(family, model, inputs, run=logits_of, plan=PLAN, **how):
    """The vision scores that methods see in every stage, of each picture, and a report."""
    _seen.clear()
    with vtfast.patch(model, plan, record=True, **how) as handle:
        run(family, model, inputs)
    return _seen.copy(), handle.report
