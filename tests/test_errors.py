"""Every error of vtfast can be caught as `VTFastError` and as a built-in error."""

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
def test_an_error_is_a_vtfast_error_and_a_built_in_one(error, builtin):
    assert issubclass(error, errors.VTFastError)
    assert issubclass(error, builtin)
