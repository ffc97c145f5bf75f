"""Let a torchvision that was built for CUDA be imported beside a torch without it.

vLLM's build for CPUs installs torchvision, and the package index has one wheel of it for Linux, of
which the operators are compiled for CUDA. Beside a CPU torch they do not load, and importing
torchvision fails where it describes two of them to torch. Nothing here calls them, so declaring
them is enough. It edits the file of the environment that it is run in, once:

    .venv-vllm/bin/python tests/serving/torchvision_stub.py
"""

from importlib.util import find_spec
from pathlib import Path

_BEFORE = "def _assert_has_ops():"
_DECLARED = """\
if not _has_ops():
    _declared = torch.library.Library("torchvision", "DEF")
    _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


"""


def main() -> None:
    """Declare the operators in the installed torchvision."""
    found = find_spec("torchvision")
    assert found is not None
    assert found.submodule_search_locations is not None
    path = Path(found.submodule_search_locations[0]) / "extension.py"
    text = path.read_text()
    if _DECLARED not in text:
        path.write_text(text.replace(_BEFORE, _DECLARED + _BEFORE, 1))


if __name__ == "__main__":
    main()
