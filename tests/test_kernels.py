"""Every kernel of every op, forward and backward alike, against the reference."""

import emulated
import pytest
import torch
from samples import SAMPLES, convert, randn
from torch import Tensor

from shiftmlp import testing
from shiftmlp._checks import DTYPES
from shiftmlp.ops import OPS
from shiftmlp.ops._op import PREFERENCE

MOVES = {"spatial_shift", "spatial_shift_backward"}
LOW = [torch.float32, torch.float16, torch.bfloat16]

BACKENDS = [name for name in PREFERENCE if name != "cuda" or torch.cuda.is_available()]
BACKENDS += emulated.WITH_TF32
CASES = [
    pytest.param(op, backend, sample, id=f"{op.name}-{backend}-{name}")
    for op in OPS.values()
    for backend in BACKENDS
    if backend in op.kernels
    for name, sample in SAMPLES[op.name].items()
]
KERNELS = [case for case in CASES if case.values[1] != "reference"]


# Where a call is cheap; and where no rounding of the result hides what is chance.
DRAWS = {"cpu": 8, "emulated_tf32": emulated.DRAWS}


def run(op, backend, args):
    if reason := op.refusal(backend, *args):
        pytest.skip(f"{backend} refuses: {reason}")
    return op(*args, backend)


def listed(results) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else results


def in_every_dtype(cases):
    for case in cases:
        op, backend, _ = case.values
        for dtype in op.dtypes[backend] or DTYPES:
            yield pytest.param(*case.values, dtype, id=f"{case.id}-{dtype}")


@pytest.mark.parametrize(("op", "backend", "sample", "dtype"), in_every_dtype(KERNELS))
def test_kernel_is_as_good_as_torch(op, backend, sample, dtype, device):
    draws = []
    for _ in range(DRAWS.get(backend, 1)):
        args = sample(randn(dtype, device))
        ours, torchs = run(op, backend, args), op(*args, "reference")
        if op.name in MOVES:
            testing.assert_same_bits(ours, torchs)
        elif dtype == torch.float64:  # there is no truth beyond it
            testing.assert_close_to_rounding(listed(ours), listed(torchs))
        else:
            draws.append((ours, torchs, op(*convert(args, Tensor.double), "reference")))
    if draws:
        testing.assert_as_good_on_average(draws)


def exact_dtype(op, backend) -> torch.dtype:
    """In which small integers have no rounding: float32, or float16 where that is not taken, or
    asks for TF32."""
    dtypes = op.dtypes[backend]
    has_float32 = dtypes is None or (torch.float32 in dtypes and backend != "cuda")
    return torch.float32 if has_float32 else torch.float16


def integers(device, dtype=torch.float32):
    """Values -2 ... 2, so that sums are exact in float32 whatever their order."""
    return lambda *shape: torch.randint(-2, 3, shape).to(device, dtype)


def linear_only(case) -> bool:
    words = {arg for arg in case.values[2](torch.zeros) if type(arg) is str}
    return not words & {"gelu", "gelu_tanh", "layer_norm"}


@pytest.mark.parametrize(("op", "backend", "sample"), filter(linear_only, CASES))
def test_integers_are_exact(op, backend, sample, device):
    args = sample(integers(device, exact_dtype(op, backend)))
    ours = run(op, backend, args)
    exact = op(*convert(args, Tensor.double), "reference")
    for got, want in zip(listed(ours), listed(exact), strict=True):
        assert torch.equal(got.double(), want)


def transposed(t: Tensor) -> Tensor:
    return t.mT.contiguous().mT if t.dim() > 1 else sliced(t)


def sliced(t: Tensor) -> Tensor:
    """Every second element of a wider tensor, the rest NaN."""
    wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 1), float("nan"))
    wide[..., 1::2] = t
    return wide[..., 1::2]


def row_pitch(t: Tensor) -> Tensor:
    """Rows of a wider tensor, at an odd element offset, surrounded by NaN."""
    wide = t.new_full((*t.shape[:-1], t.shape[-1] + 3), float("nan"))
    wide[..., 1 : 1 + t.shape[-1]] = t
    return wide[..., 1 : 1 + t.shape[-1]]


def reversed_axes(t: Tensor) -> Tensor:
    return t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))


def expanded(t: Tensor) -> Tensor:
    """One row for all with a stride of 0, as in the gradient of a sum."""
    return t[:1].expand(t.shape) if len(t) else t


LAYOUTS = [transposed, sliced, row_pitch, reversed_axes, expanded]


@pytest.mark.parametrize(("op", "backend", "sample"), CASES)
def test_layout_does_not_matter(op, backend, sample, device):
    given = sample(randn(exact_dtype(op, backend), device))
    dense = run(op, backend, given)
    same_rows = run(op, backend, convert(convert(given, expanded), Tensor.contiguous))
    for layout in LAYOUTS:
        ours = run(op, backend, convert(given, layout))
        wanted = same_rows if layout == expanded else dense
        assert all(result.is_contiguous() for result in listed(ours)), layout.__name__
        if op.name in MOVES:
            testing.assert_same_bits(ours, wanted)
        else:
            testing.assert_close_to_rounding(listed(ours), listed(wanted))


@pytest.mark.parametrize(("op", "backend", "sample"), CASES)
def test_inputs_stay_as_they_were_and_repeats_are_equal(op, backend, sample, device):
    args = sample(randn(exact_dtype(op, backend), device))
    before = convert(args, Tensor.clone)
    first = run(op, backend, args)
    second = op(*args, backend)
    testing.assert_same_bits(first, second)
    for arg, copy in zip(args, before, strict=True):
        if isinstance(arg, Tensor):
            testing.assert_same_bits(arg, copy)
    storages = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
    for result in listed(first):
        assert result.untyped_storage().data_ptr() not in storages - {0}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_special_values_only_move(backend, value, dtype, device):
    op = OPS["spatial_shift"]
    for sample in ("s2-odd-sides", "axial-h-odd-sides", "grid-odd-sides", "wrap-odd-sides"):
        x, shift = SAMPLES["spatial_shift"][sample](randn(dtype, device))
        x[0, 2, 3] = value
        testing.assert_same_bits(run(op, backend, (x, shift)), op(x, shift, "reference"))


THREADED = [case for case in KERNELS if case.values[1] == "cpu"]


@pytest.mark.parametrize(("op", "backend", "sample"), THREADED)
def test_threads_do_not_change_bits(op, backend, sample):
    args = sample(randn(exact_dtype(op, backend)))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(run(op, backend, args))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        testing.assert_same_bits(result, results[0])


def test_norms_on_the_cpu_round_once():
    """Products with the identity are exact, so that all that is left is the norm and its adjoint,
    which are kept in double: their rounding would reach every gradient behind them."""
    torch.manual_seed(0)
    x, dy = 30 + torch.randn(1, 21, 37), torch.randn(1, 21, 37)
    norm = ("layer_norm", torch.randn(37), torch.randn(37), 1e-6)
    linears = (torch.eye(37), None, torch.eye(37), None)
    saved = (x, *norm, *linears, "none", "none", None, None, 0.0, None)
    forward, backward = OPS["channel_mlp"], OPS["channel_mlp_backward"]
    needs = [name.startswith(("x", "norm")) for name in forward.asked]
    for op, args in ((forward, (*saved, None)), (backward, (dy, *saved, needs))):
        ours = run(op, "cpu", args)
        exact = op(*convert(args, Tensor.double), "reference")
        for got, want in zip(listed(ours), listed(exact), strict=True):
            assert torch.equal(got, want.float())


def test_many_positions_on_the_cpu_are_exact():
    """So many that the backward turns the weights once for all of them."""
    torch.manual_seed(0)
    make = integers("cpu")
    none = ("none", None, None, 0.0)
    linears = (make(9, 6), make(9), make(3, 9), make(3))
    args = (make(1100, 3), make(1100, 6), *none, *linears, "relu", *none, None)
    needs = [True] + [False] * 2 + [True] * 4 + [False] * 3
    ours = run(OPS["channel_mlp_backward"], "cpu", (*args, needs))
    exact = OPS["channel_mlp_backward"](*convert(args, Tensor.double), needs, "reference")
    for got, want in zip(listed(ours), listed(exact), strict=True):
        assert torch.equal(got.double(), want)
