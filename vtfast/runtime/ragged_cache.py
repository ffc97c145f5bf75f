"""Here for old pickles only, as `cache` is: vtfast 0.1 had the layers of packed KV caches here."""

from vtfast.runtime.cache import __getattr__

__all__ = ["__getattr__"]
