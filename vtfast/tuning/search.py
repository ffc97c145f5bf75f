"""The rule by which `vtfast.tune` finds a plan. It knows questions and answers by number alone.

The questions are split at random into two parts.

1. *Search.* Plans are tried from the cheapest on. A plan is asked 8 questions of the search part,
   then 16, 32 and so on, and is out as soon as a lower bound of its loss, at 95 %, is above the
   tolerance, or as it could not pass step 2 even if it lost nothing more. A plan that has been
   asked all is a finalist. The next one has to cost a fifth more, or to save a fifth less, so that
   where the cheapest fail in step 2 one that is surely safer may pass. The search ends with
   `FINALISTS` of these.
2. *The final word.* Finalists are asked the questions held out, those with the smallest upper
   bound of the loss first, up to the first whose bound at the wanted confidence is above the
   tolerance. The answer is the cheapest of those before it.

However many plans the search has tried, the probability of naming a plan that loses more than the
tolerance is at most 1 - confidence: none was asked a question of the held-out part before, and
testing in an order that is fixed beforehand, up to the first failure, needs no correction (fixed
sequence testing; as in Learn then Test, arXiv 2110.01052). The bounds are exact: see
`vtfast.information.shares`. The search alone guarantees nothing, so peeking and its 95 % cost no
confidence; they decide how good the plan is, not how sure.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vtfast.information.shares import bounds_of_true_loss

FINALISTS = 5
_STEP = 0.2  # a finalist costs by so much more than the one before, or saves by so much less
_FIRST = 8  # questions, of a plan's first look
_SURE_ENOUGH = 0.95  # that a plan is beyond the tolerance, to ask it no more

# Of answers: lost and gained against the unpruned model, which has so many right and wrong.
Counts = tuple[int, int, int, int]  # lost, right, gained, wrong
Ask = Callable[[int, Sequence[int]], Counts]  # a plan's number, questions → its answers to them


def bounds_of(counts: Counts, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper bound of the true loss, a share of all questions like these."""
    lost, right, gained, wrong = counts
    return bounds_of_true_loss(lost, gained, right + wrong, confidence)


@dataclass(frozen=True)
class Found:
    """What a search found, plans by number, cheapest first.

    Attributes:
        tried: plan → its answers to the questions that it was asked in the search.
        tested: plan → its answers to the questions held out, in the order they were tested.
        passed: those of them that passed: all, or all but the last.
    """

    tried: dict[int, Counts]
    tested: dict[int, Counts]
    passed: list[int]


def search(
    costs: Sequence[float],
    ask: Ask,
    questions: Sequence[int],
    held_out: Sequence[int],
    max_loss: float,
    confidence: float,
    exhaustive: bool = False,
) -> Found:
    """Find the cheapest plan that loses little enough, of plans of these costs, ascending.

    ask: is called with questions of one part, those asked before included. exhaustive: ask every
    plan every question of the search, to compare with.
    """

    def passes(counts: Counts) -> bool:
        """To the questions held out, or as part of as many, of which no more are lost or gained."""
        lost, _, gained, _ = counts
        most = bounds_of_true_loss(lost, gained, len(held_out), confidence)[1]
        return most <= max_loss

    tried: dict[int, Counts] = {}
    good: list[int] = []
    for plan, cost in enumerate(costs):
        far = not good or _is_far(cost, costs[good[-1]])
        if not far and not exhaustive:
            continue
        for size in [len(questions)] if exhaustive else _sizes(len(questions)):
            tried[plan] = ask(plan, questions[:size])
            least = bounds_of(tried[plan], _SURE_ENOUGH)[0]
            if not passes(tried[plan]) or (least > max_loss and not exhaustive):
                break
        else:
            if far and len(good) < FINALISTS:
                good.append(plan)
            if len(good) == FINALISTS and not exhaustive:
                break
    # Of equally safe plans the more expensive first, as it is more likely to pass.
    bounds = {plan: bounds_of(tried[plan], confidence)[1] for plan in good}
    order = sorted(bounds, key=lambda plan: (bounds[plan], -plan))
    found = Found(tried, {}, [])
    for plan in order:
        found.tested[plan] = ask(plan, held_out)
        if not passes(found.tested[plan]):
            break
        found.passed.append(plan)
    return found


def horizon_of(
    layers: Sequence[int], ask: Ask, questions: Sequence[int], max_loss: float
) -> int | None:
    """The first of these layers at which dropping all visual tokens is not shown to lose more than
    the tolerance, by bisection, as a loss shrinks with depth; None if there is none.

    ask: takes the number of a layer.
    """
    low, high = 0, len(layers)
    while low < high:
        middle = (low + high) // 2
        if bounds_of(ask(middle, questions), _SURE_ENOUGH)[0] > max_loss:
            low = middle + 1
        else:
            high = middle
    return layers[low] if low < len(layers) else None


def _is_far(cost: float, before: float) -> bool:
    return cost >= (1 + _STEP) * before or 1 - cost <= (1 - _STEP) * (1 - before)


def _sizes(total: int) -> list[int]:
    """8, 16, 32, … and all."""
    doublings = max(0, math.ceil(math.log2(total / _FIRST)))
    return [*(_FIRST * 2**i for i in range(doublings)), total]
