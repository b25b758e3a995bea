"""Every test: seeded, fresh memory poisoned with NaN, Triton interpreted where there is no GPU."""

import importlib.util
import os
import sys
from contextlib import nullcontext

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's condition for determinism

import pytest  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, os.path.dirname(__file__))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated
    if importlib.util.find_spec("triton"):
        import interpreter_bf16
        import interpreter_speed

        interpreter_bf16.patch()
        interpreter_speed.patch()

import tf32  # noqa: E402

from shiftmlp.cli._models import make_torchvision_importable  # noqa: E402

make_torchvision_importable()

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # a worker for each core


@pytest.fixture(autouse=True)
def poison():
    """Deterministic mode fills fresh memory with NaN: an element left unwritten is seen.

    ``torch.use_deterministic_algorithms`` would import the compiler, 3 s of every process.
    """
    torch.manual_seed(0)
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(autouse=True)
def precision(request):
    """TF32 is allowed in tests of a backend whose float32 products have nothing else."""
    given = getattr(getattr(request.node, "callspec", None), "params", {})
    backend, dtype = given.get("backend"), given.get("dtype")
    in_tf32 = backend == "emulated_tf32" or (backend == "cuda" and dtype == torch.float32)
    with tf32.allowed() if in_tf32 else nullcontext():
        yield


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES if torch.cuda.is_available() else DEVICES[:1])
def device(request):
    return request.param
