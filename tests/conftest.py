"""Every test: seeded, fresh memory poisoned with NaN, Triton interpreted where there is no GPU."""

import importlib.util
import os
import sys

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's condition for determinism

import pytest  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, os.path.dirname(__file__))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated
    if importlib.util.find_spec("triton"):
        import interpreter_bf16

        interpreter_bf16.patch()

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # PyPI's build finds no CUDA and gives up on operators that timm, which imports it, never calls.
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
except ImportError:
    pass

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # a worker for each core


@pytest.fixture(autouse=True)
def poison():
    """Deterministic mode fills fresh memory with NaN: an element left unwritten is seen."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES if torch.cuda.is_available() else DEVICES[:1])
def device(request):
    return request.param
