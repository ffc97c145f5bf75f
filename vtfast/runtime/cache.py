"""Where vtfast 0.1 had its KV caches; a pickle of one looks for them here and is told to go."""

from vtfast.errors import StateError


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    raise StateError(
        "this KV cache was pickled by vtfast 0.1, whose caches later versions cannot go on with; "
        "run the prompt again and pickle the new cache"
    )
