"""Kernels read their inputs, write their results and touch nothing else, however far that lies."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from guarded import Placing, moved, span
from samples import SAMPLES, convert, randn
from test_kernels import KERNELS, listed, run
from torch import Tensor

from shiftmlp import _native, testing
from shiftmlp.ops import OPS, _triton

STRIP = 128  # elements beside every tensor that a kernel allocates
MAP_NORESERVE = 0x4000  # Linux; mmap has no name for it
REACH = 2**31  # elements: the first offset that 32 bits do not hold


def dtype_for(backend):
    # Triton has a kernel for token_mlp that only 16 bits take.
    return torch.float16 if backend == "triton" else torch.float32


@pytest.mark.parametrize(("op", "backend", "sample"), KERNELS)
def test_nothing_outside_is_read_or_changed(op, backend, sample, device):
    """Inputs lie in fields of NaN, also between their rows, as does what is made."""
    args = sample(randn(dtype_for(backend), device))
    alone, exact = run(op, backend, args), op(*convert(args, Tensor.double), "reference")
    fields, strips = [], []

    def in_a_field(t):
        field = t.new_full([size + 2 for size in t.shape], float("nan"))
        inner = field[(slice(1, -1),) * t.dim()]
        inner.copy_(t)
        fields.append((field, field.clone()))
        return inner

    def between_strips(t):
        outside = float("nan") if t.is_floating_point() else 7
        field = t.new_full((span(t) + 2 * STRIP,), outside)
        strips.append((field, field.clone()))
        return moved(t, field[STRIP : STRIP + span(t)])

    args = convert(args, in_a_field)
    with Placing(between_strips):
        ours = op(*args, backend)
    if (
        backend == "emulated_tf32"
    ):  # float32 shows that columns are summed as their alignment allows
        testing.assert_as_good_as_torch(ours, alone, exact)
    else:
        testing.assert_same_bits(ours, alone)
    assert all(result.isfinite().all() for result in listed(ours)), "not written"
    for field, before in fields:
        testing.assert_same_bits(field, before)
    assert strips
    for field, before in strips:
        for side in (slice(STRIP), slice(-STRIP, None)):
            testing.assert_same_bits(field[side], before[side])


@pytest.mark.parametrize("side", ["begin", "end"])
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_no_access_beyond_guard_pages(backend, side):
    if backend == "triton" and not _triton.INTERPRETED:
        pytest.skip("kernels run on a GPU here")
    if backend == "cpu" and (reason := _native.why_not("cpu")):
        pytest.skip(reason)
    program = Path(__file__).with_name("guarded.py")
    ran = subprocess.run(
        [sys.executable, program, backend, side], capture_output=True, text=True, timeout=300
    )
    *ran_before, last = ran.stdout.splitlines() or [""]
    assert ran.returncode == 0, f"ended by {ran.returncode} in {last}\n{ran.stderr}"
    assert len(ran_before) >= 50 and last == "no access outside"


def far(t: Tensor, axis: int | str) -> Tensor:
    """``t`` with an axis, or all its rows, so far apart that the last offset takes over 31 bits."""
    strides = list(t.stride())
    # Odd strides leave no vectors, whose width would divide the offsets.
    if axis == "rows" and t.dim() > 1:
        C = t.shape[-1]
        pitch = REACH // (t.numel() // C - 1) + 1 | 1
        strides[:-1] = [stride // C * pitch for stride in strides[:-1]]
    elif axis != "rows" and t.dim() >= -axis and t.shape[axis] > 1:
        strides[axis] = REACH // (t.shape[axis] - 1) + 1 | 1
    # Pages that are never touched take no memory.
    size = span(torch.empty_strided(t.shape, strides, device="meta")) * t.itemsize
    pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=t.dtype).as_strided(t.shape, strides).copy_(t)


# Else the first sample of an op.
FAR = {
    "spatial_shift": ("s2-odd-sides", "wrap-odd-sides"),
    "shift_linear": ("odd-sides", "all-options"),
}
FAR_CASES = [
    pytest.param(op, backend, SAMPLES[op.name][name], axis, id=f"{op.name}-{backend}-{name}-{axis}")
    for op in OPS.values()
    for backend in ("triton", "cpu")
    if backend in op.kernels
    for name in FAR.get(op.name.removesuffix("_backward"), list(SAMPLES[op.name])[:1])
    for axis in (-4, -3, -2, "rows")
    if axis != -4 or "shift" in op.names
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the pages are the host's")
@pytest.mark.parametrize(("op", "backend", "sample", "axis"), FAR_CASES)
def test_offsets_have_64_bits(op, backend, sample, axis):
    args = sample(randn(dtype_for(backend)))
    alone = run(op, backend, args)
    testing.assert_same_bits(op(*convert(args, lambda t: far(t, axis)), backend), alone)
