"""Here for old pickles only: vtfast 0.1 had its KV caches here, and loading one raises an error."""

from vtfast.errors import StateError


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    raise StateError(
        "this KV cache was pickled by vtfast 0.1, whose caches later versions cannot use; "
        "run the prompt again and pickle the new cache"
    )
