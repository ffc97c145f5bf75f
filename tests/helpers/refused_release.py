"""What the tests of the self-check share: a plan, and that a release is refused without a trace."""

import pytest
import transformers
from module_state import changes, module_state
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vtfast
from vtfast import Prune, UnsupportedVersionError

PLAN = [Prune(0, "diversity", 0.5), Prune(3, "random", 0.25)]


def registered():
    return list(ALL_ATTENTION_FUNCTIONS), list(ALL_MASK_ATTENTION_FUNCTIONS)


def refused(model, match=None):
    """`vtfast.patch` refuses this release in both layouts and leaves everything as it was."""
    before, registries = module_state(model), registered()
    for path in ("padded", "packed"):
        with pytest.raises(UnsupportedVersionError, match=match) as caught:
            vtfast.patch(model, PLAN, path=path)
        assert transformers.__version__ in str(caught.value)
    assert changes(before, module_state(model)) == []
    assert registered() == registries
    return str(caught.value)
