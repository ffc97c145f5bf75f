"""Set-up of the test session, and the fixtures that many tests share."""

import functools
import importlib
import os
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
# Without a workspace of its own cuBLAS is not deterministic, and refuses when it has to be.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

import examples  # noqa: F401 (names the profiles before pytest looks for one)
import pytest
import torch
from devices import ARCH, DEVICE, INTERPRETED

import vtfast

# Not even skipped where kernels are not compiled and executed as PTX.
collect_ignore_glob = [] if ARCH else ["kernels/test_compiled_*.py", "kernels/test_ptx_*.py"]
collect_ignore_glob.append("hub/files/*")  # for where `make hub` writes them
if not find_spec("vllm"):  # `make test-vllm` has an environment with it
    collect_ignore_glob.append("serving/test_vllm_*.py")
if ARCH:
    launch = importlib.import_module("vtfast.kernels._launch")
    launch.INTERPRETED, launch.INTERPRETED_AS = True, ARCH  # so that CPU tensors are accepted
    importlib.import_module("ptx_driver").activate(ARCH)
torch.set_num_threads(1)  # the models are tiny: more threads would only wait for one another
SIGNALLING_NAN = 0x7FA00000


def pytest_sessionstart() -> None:
    if _no_compiler() and os.environ.get("CI") == "true":
        raise pytest.UsageError(f"{_no_compiler()} (with CI=true tests are not skipped for this)")


def _no_compiler() -> str:
    """Why compiled kernels cannot be executed here; "" if they can, or if no test does."""
    if not ARCH or importlib.import_module("ptx_machine").compiler():
        return ""
    return "executing PTX needs g++ or clang++ on the path; install one"


def pytest_runtest_setup() -> None:
    """Skip every test, in one line of the summary, where it could not launch a compiled kernel."""
    if reason := _no_compiler():
        pytest.skip(reason)


def pytest_report_header() -> str:
    how = "interpreted" if INTERPRETED else "compiled"
    where = f"{DEVICE}, executed as PTX of {ARCH}" if ARCH else DEVICE
    return f"Triton kernels: {how}, on {where}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--impl", help="impl of every patch whose test passes none: eager or triton")
    parser.addoption("--orders", type=int, help="orders to execute each launch of PTX in")


def pytest_configure(config: pytest.Config) -> None:
    if orders := config.getoption("--orders"):
        importlib.import_module("ptx_driver").settings.orders = orders


@pytest.fixture(scope="session", autouse=True)
def numbers_of_the_interpreter() -> None:
    """Make Triton 3.6 convert one-element arrays to ints as NumPy 2.4 still allows."""
    if not INTERPRETED or find_spec("triton") is None or not version("triton").startswith("3.6."):
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda number: int(number.handle.data.item()))

    interpreter._patch_lang_tensor = patched


@pytest.fixture(autouse=True)
def patched_impl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the model tests through one implementation of the ops."""
    if impl := request.config.getoption("--impl"):
        monkeypatch.setattr(vtfast, "patch", functools.partial(vtfast.patch, impl=impl))


@pytest.fixture(scope="session")
def device() -> str:
    """Where Triton kernels run in this session."""
    return DEVICE


@pytest.fixture(params=["eager", "triton"])
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both implementations of an op; tensors are made where the one at hand runs."""
    with torch.device(DEVICE if request.param == "triton" else "cpu"):
        yield request.param


@pytest.fixture(params=["NumPy", "PyTorch", "triton"])
def select_impl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As `impl`, with both ways in which a CPU makes random and top-k picks."""
    if request.param == "PyTorch":
        module = importlib.import_module("vtfast.kernels._select_numpy")
        monkeypatch.setattr(module, "can_read", lambda *arguments: False)
    with torch.device(DEVICE if request.param == "triton" else "cpu"):
        yield "triton" if request.param == "triton" else "eager"


@pytest.fixture(scope="session")
def strict_interpreter() -> None:
    """Let interpreted kernels raise on int32 overflow and on a failed `device_assert`."""
    if INTERPRETED:
        interpreter = importlib.import_module("triton.runtime.interpreter")
        interpreter.interpreter_builder.options = interpreter.InterpreterOptions(debug=True)


@pytest.fixture
def fenced_memory(strict_interpreter: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a fence of poison on both sides of whatever `torch.empty` returns.

    At the end all fences must be intact: no kernel wrote before or after its output. Between them
    fp32 is filled with signalling NaN, of which NumPy warns, and a warning is an error: no kernel
    computes with what was never written, not even to throw the result away.
    """
    empty, width, poison, fenced = torch.empty, 64, 0x5A, []

    def fenced_empty(*shape: Any, dtype: torch.dtype | None = None, **options: Any) -> torch.Tensor:
        inside = empty(*shape, dtype=dtype, **options)
        if inside.device.type == "meta":
            return inside
        margin = width * inside.element_size()
        data = inside.numel() * inside.element_size()
        whole = empty(data + 2 * margin, dtype=torch.uint8, device=inside.device).fill_(poison)
        fenced.append((whole, margin))
        inside = whole[margin : margin + data].view(inside.dtype).view(inside.shape)
        if inside.dtype == torch.float32:
            inside.view(torch.int32).fill_(SIGNALLING_NAN)
        return inside

    monkeypatch.setattr(torch, "empty", fenced_empty)
    yield
    for whole, margin in fenced:
        assert (whole[:margin] == poison).all(), "written before an output"
        assert (whole[-margin:] == poison).all(), "written after an output"


@pytest.fixture
def cuda_streams(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Set what torch reports of CUDA streams: which is `current`, and whether it is `captured`."""
    cuda = SimpleNamespace(current=0, captured=False)
    current, captured = "_cuda_getCurrentRawStream", "is_current_stream_capturing"
    monkeypatch.setattr(torch._C, current, lambda device: cuda.current, raising=False)
    monkeypatch.setattr(torch.cuda, captured, lambda: cuda.captured)
    return cuda


@pytest.fixture
def poisoned_memory():
    """Fill what `torch.empty` and the like return: NaN in floats, the largest value in integers.

    So an output that is never written cannot pass for the zeros that a fresh process often gets.
    """
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
