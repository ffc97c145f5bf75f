"""What vtfast raises: one base class, and under it one class per kind of mistake.

Every class is also a built-in `ValueError`, `TypeError` or `RuntimeError`, so code that knows
nothing of vtfast catches it as it would any other.
"""


class VTFastError(Exception):
    """Base of every error that vtfast raises on purpose."""


class PlanError(VTFastError, ValueError):
    """A plan, one of its stages, or a preset's `keep` or `horizon` is invalid or cannot be met."""


class AlreadyPatchedError(VTFastError, RuntimeError):
    """The model is patched already; undo that patch first."""


class UnsupportedModelError(VTFastError, TypeError):
    """The model, or a part of it, is of a kind vtfast does not know how to prune."""


class UnsupportedVersionError(VTFastError, RuntimeError):
    """This release of transformers works in a way vtfast was not written for."""


class InputError(VTFastError, ValueError):
    """What was passed to a patched model does not fit what vtfast can prune."""


class StateError(VTFastError, RuntimeError):
    """A call came at the wrong moment, or what it relies on has changed since."""
