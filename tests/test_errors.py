"""Errors: every one is caught as ours and as the built-in it stands for."""

import pytest

from vtfast import errors


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.PlanError, ValueError),
        (errors.InputError, ValueError),
        (errors.UnsupportedModelError, TypeError),
        (errors.AlreadyPatchedError, RuntimeError),
        (errors.StateError, RuntimeError),
    ],
)
def test_an_error_is_ours_and_a_built_in(error, builtin):
    assert issubclass(error, errors.VTFastError)
    assert issubclass(error, builtin)
