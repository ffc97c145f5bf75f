"""The timing of prefills: every variant runs as many tokens as it says, equally often."""

import torch

from vtfast.cli._prefill_race import TINY, MidSize, Race


def test_every_variant_is_timed_equally_often() -> None:
    race = Race(TINY, "divprune", (0.5,), seed=0, rounds=3)
    passes = []
    timings = race.run(lambda: passes.append(1))
    assert len(passes) == race.passes == (1 + 3) * 3
    assert [timing.variant for timing in timings] == race.variants


def test_each_variant_prefills_as_many_tokens_as_it_says() -> None:
    """The last layer sees text and visual tokens: all, the plan's, and natively the plan's too."""
    race = Race(TINY, "divprune", (0.5,), seed=0, rounds=1)
    lengths = []

    def look(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        lengths.append(args[0].shape[1])

    build = TINY.build

    class Watched(MidSize):
        def build(self):
            model = build()
            last = model.model.language_model.layers[-1]
            last.register_forward_pre_hook(look, with_kwargs=True)
            return model

    race.sizes = Watched(**vars(TINY))
    race.run()
    seen = [TINY.text_tokens + int(variant.visual_tokens) for variant in race.variants]
    assert seen == [16 + 36, 16 + 18, 16 + 18]
    assert lengths == [*reversed(seen), *seen]


def test_natively_shorter_is_the_average_of_a_plan_with_two_stages() -> None:
    race = Race(TINY, "divprune+random", (0.5,), seed=0, rounds=1)
    _, pruned, native = race.variants
    assert pruned.plan is not None
    assert pruned.visual_tokens == pruned.plan.average_tokens(36, TINY.layers)
    assert native.visual_tokens == round(pruned.visual_tokens)
    assert native.plan is None


def test_the_model_that_is_timed_by_default_is_mid_size() -> None:
    sizes = MidSize()
    assert (sizes.layers, sizes.width, sizes.visual_tokens) == (16, 1024, 576)


def test_the_timed_model_depends_on_its_seed_alone() -> None:
    one = TINY.build().state_dict()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    other = TINY.build().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.random.get_rng_state(), state)
