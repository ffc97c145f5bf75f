"""The pruning methods, one a file; `context` is what a method sees, `registry` has their names."""

from vtfast.methods.context import Attention, SelectionContext, Sequences
from vtfast.methods.registry import Method, method, register_method

__all__ = ["Attention", "Method", "SelectionContext", "Sequences", "method", "register_method"]
