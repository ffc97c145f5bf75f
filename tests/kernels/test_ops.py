"""`vtfast.ops`: every op by its name, loaded only when it is used."""

import doctest
import inspect
import subprocess
import sys

import pytest

from vtfast import ops
from vtfast.kernels import reference

OPS = [name for name in ops.__all__ if name != "Ragged"]


@pytest.mark.parametrize("name", ops.__all__)
def test_has_every_op_it_lists(name):
    op = getattr(ops, name)
    assert op.__name__ == name
    assert op.__module__.startswith("vtfast.kernels.")


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_a_reference_with_the_same_signature(name):
    """It lacks only `impl`, and old names that are deprecated."""
    parameters = dict(inspect.signature(getattr(ops, name)).parameters)
    assert parameters.pop("impl").default == "auto"
    parameters.pop("keys", None)
    expected = inspect.signature(getattr(reference, name)).parameters
    assert list(parameters.values()) == list(expected.values())


@pytest.mark.parametrize("name", ops.__all__)
def test_the_example_in_its_docstring_holds(name):
    outcome = doctest.testmod(sys.modules[getattr(ops, name).__module__])
    assert (outcome.failed, outcome.attempted > 0) == (0, True)


def test_an_unknown_op_is_named_with_those_there_are():
    with pytest.raises(AttributeError, match="no op 'sparse_select'; it has Ragged, coverage"):
        _ = ops.sparse_select


def test_importing_it_loads_neither_torch_nor_an_op():
    code = (
        "import sys, vtfast.ops\n"
        "assert not {'torch', 'triton', 'vtfast.kernels.gather'} & set(sys.modules)\n"
        "vtfast.ops.gather_rows\n"
        "assert 'vtfast.kernels.gather' in sys.modules\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
