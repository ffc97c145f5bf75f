"""How many cases hypothesis tries: the same in every run; a fuzz draws others, ten times as many.

`make fuzz` passes `--hypothesis-profile fuzz`; what fails there is kept in `.hypothesis/` and tried
first by the next fuzz.
"""

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.register_profile("fuzz", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("fixed")


def examples(number: int) -> settings:
    """Decorate a test to try this many cases, more in a fuzz."""
    fuzz = settings.get_current_profile_name() == "fuzz"
    return settings(max_examples=number * (10 if fuzz else 1))
