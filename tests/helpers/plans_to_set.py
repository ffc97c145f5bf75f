"""Plans that need different things of a model, and the kinds of call that run them."""

from model_runs import FOUR_STAGES, continuation, logits_of

from vtfast import Prune

PLAIN = [Prune(0, "uniform", 0.5), Prune(3, "uniform", 0.2)]  # needs nothing
SCORED = [Prune(1, "topk", 0.4), Prune(4, "topk", 0.2)]  # by layers that no other plan looks at
TOWER = [Prune(0, "visionzip", 0.5), Prune(4, "scope", 0.2)]
RANDOM = [Prune(0, "random", 0.4), Prune(3, "drop", 0)]  # by image hashes
ALL = [Prune(0, "uniform", 1.0)]
PLANS = {"four": FOUR_STAGES, "plain": PLAIN, "scored": SCORED, "tower": TOWER, "random": RANDOM}
PLANS["all"] = ALL

_GENERATE = {"generate": {}, "beams": {"num_beams": 3}, "drafts": {"prompt_lookup_num_tokens": 2}}
RUNS = ("forward", *_GENERATE)


def said_by(run, family, model, inputs):
    """Logits of a forward, or the tokens of `generate`."""
    if run == "forward":
        return logits_of(family, model, inputs)
    return continuation(model, inputs, steps=4, **_GENERATE[run])
