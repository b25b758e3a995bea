"""The price of a call above its kernel, for every op."""

import pytest
import torch

from shiftmlp.bench.cases import SHAPES
from shiftmlp.bench.overhead import LIMIT_US, above_kernel_us, path_us, tiny_call


@pytest.fixture(autouse=True)
def one_thread():
    """Handing work to another thread is no part of the path."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("op", SHAPES)
def test_call_costs_little_above_its_kernel(op, benchmark):
    call = tiny_call(op)
    with torch.no_grad():
        benchmark.pedantic(call, rounds=100, iterations=10, warmup_rounds=5)
    path = min(path_us(op) for _ in range(3))
    benchmark.extra_info["path_us"] = round(path, 2)
    benchmark.extra_info["above_kernel_us"] = round(above_kernel_us(op), 2)
    assert path <= LIMIT_US, f"{op}: {path:.1f} us from the call to the kernel and back"
