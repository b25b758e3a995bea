"""The Triton kernels over channels beyond small values: tiles, memory, strides, dtypes."""

import itertools
from unittest import mock

import pytest
import torch
from samples import SAMPLES, convert, randn
from torch import Tensor

from shiftmlp import Shift, testing
from shiftmlp.ops import OPS, _triton

pytest.importorskip("triton")

from test_machine_code import SHARED_LIMIT  # noqa: E402
from test_triton import BORDERED  # noqa: E402

from shiftmlp.ops import _triton_gemm, _triton_shift  # noqa: E402
from shiftmlp.ops._math import activate_backward  # noqa: E402
from shiftmlp.ops._triton_gemm import linear, linear_backward_weight  # noqa: E402
from shiftmlp.ops.spatial_shift.triton_kernels import move  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("channel_mlp", "shift_linear", "shift_mlp")
SIZES = (1, 7, 16, 96, 196, 768, 3072, 50_000)


@pytest.mark.parametrize("arch", SHARED_LIMIT)
def test_tiles_fit_every_gpu(arch, monkeypatch):
    monkeypatch.setattr(_triton_gemm, "shared_memory", lambda: SHARED_LIMIT[arch])
    for dtype, sizes in itertools.product(_triton.PRODUCTS, itertools.product(SIZES, repeat=3)):
        found = _triton_gemm.tile(*sizes, dtype)
        sides = found["down"], found["across"], found["along"]
        for side, size in zip(sides, sizes, strict=True):
            assert side >= 16 and side & (side - 1) == 0 and side < max(17, 2 * size)
        loaded = (sides[0] + sides[1]) * sides[2] * dtype.itemsize * found["num_stages"]
        assert loaded <= SHARED_LIMIT[arch]


@pytest.mark.parametrize("M", [0, 1, 100, 512, 1000, 25_088, 2**33])
def test_parts_of_a_sum_cover_every_row_once(M):
    for tiles, block in itertools.product((1, 9, 144, 1000), (16, 64)):
        parts, rows = _triton_gemm.split(M, tiles, block)
        assert rows % block == 0 and (parts - 1) * rows <= max(0, M - 1) < max(1, parts * rows)


def test_channels_take_one_step_together_where_they_can():
    def blocks(shift, C):
        found = _triton_shift.on_load(shift.spec, C, 64)
        stored = _triton_shift.on_store(shift.spec, C, 2)
        return found["BLOCK_K"], found["SPAN"], stored and stored["VEC"]

    assert blocks(Shift.S2, 384) == (32, 1, 8)
    assert blocks(Shift.S2, 768) == (64, 1, 8)
    assert blocks(Shift(((0, 1),)), 384) == (64, 1, 8)  # one step for all
    assert blocks(Shift.S2, 16) == (32, 32, 4)
    assert blocks(Shift.cycle(3, "h"), 96) == (32, 32, None)


@pytest.mark.parametrize("shift", BORDERED.values(), ids=BORDERED.keys())
def test_what_is_moved_as_it_is_stored_is_what_moves_once_stored(shift):
    for dtype, leading, N in [
        (torch.float32, (2, 5, 3), 40),
        (torch.bfloat16, (1, 7, 1), 48),
        (torch.float16, (3, 1, 4), 9),
        (torch.bfloat16, (1, 1, 1), 240),
        (torch.float16, (1, 9, 16), 144),  # two tiles each way
    ]:
        x, weight = (torch.randn(*shape, 8, device=DEVICE).to(dtype) for shape in (leading, (N,)))
        plain, inner = linear(x, weight, activation="relu"), x.new_empty(*leading, N)
        moved = linear(x, weight, activation="relu", moves=shift.spec, inner=inner)
        want = torch.ops.shiftmlp.spatial_shift(plain, shift.spec, "reference")
        testing.assert_same_bits(moved, want)
        testing.assert_same_bits(inner, linear(x, weight))


@pytest.mark.parametrize("shift", BORDERED.values(), ids=BORDERED.keys())
def test_the_adjoint_of_the_shift_takes_the_slope_along(shift):
    for dtype, shape in [(torch.float32, (2, 5, 3, 37)), (torch.bfloat16, (1, 1, 4, 48))]:
        dy, inner = torch.randn(2, *shape, device=DEVICE).to(dtype)
        [back] = torch.ops.shiftmlp.spatial_shift_backward(dy, shift.spec, [True], "reference")
        moved = move(dy, shift.spec, True, inner, "gelu_tanh")
        testing.assert_as_good_as_torch(
            moved,
            activate_backward(back, inner, "gelu_tanh"),
            activate_backward(back.double(), inner.double(), "gelu_tanh"),
        )


LARGE = {
    "shift_linear": lambda m: (
        m(1, 18, 29, 40), m(72, 40), m(72), Shift.axial(3, "w").spec, "gelu", m(72), None,
    ),
    "shift_mlp": lambda m: (
        m(1, 18, 29, 40), "layer_norm", m(40), m(40), 1e-6, m(80, 40), m(80), m(72, 80), m(72),
        Shift.S2.spec, "gelu", "layer_norm", m(72), m(72), 1e-6, m(72), m(1, 18, 29, 72),
    ),
}  # fmt: skip


def backward_inputs(op, args, y):
    given = dict(zip(op.names, args, strict=False))
    needs = [given[asked] is not None for asked in op.asked]
    return torch.randn_like(y), *(given[saved] for saved in op.saved), needs


@pytest.mark.parametrize("name", LARGE)
def test_many_tiles(name):
    """More than one tile along every axis, and sums over rows in more than one part."""
    op = OPS[name]
    args = LARGE[name](randn(torch.float32, DEVICE))
    y = op(*args, "triton")
    inputs = backward_inputs(op, args, y)
    for which, given, ours in (
        (op, args, y),
        (op.backward, inputs, op.backward(*inputs, "triton")),
    ):
        exact = which(*convert(given, Tensor.double), "reference")
        testing.assert_as_good_as_torch(ours, which(*given, "reference"), exact)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_outside_is_written(name, monkeypatch):
    """Every fresh tensor lies between two strips that must stay as they are."""
    fields = []

    def guarded(self, *shape, dtype=None, **options):
        shape = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        field = self.new_full((shape.numel() + 256,), 7, dtype=dtype or self.dtype)
        fields.append(field)
        return field[128:-128].view(shape)

    cases = [
        (OPS[which], sample(randn(torch.float32, DEVICE)))
        for which in (name, f"{name}_backward")
        for sample in SAMPLES[which].values()
    ]
    monkeypatch.setattr(Tensor, "new_empty", guarded)
    for op, args in cases:
        op(*args, "triton")
    assert len(fields) >= len(cases)
    for field in fields:
        assert (field[:128] == 7).all() and (field[-128:] == 7).all()


@pytest.mark.skipif(DEVICE == "cuda", reason="the file is mapped on the host")
def test_offsets_have_64_bits(tmp_path):
    def spread(rows, columns, *strides):
        # A file with holes takes the space of what is written to it.
        size = (rows - 1) * strides[0] + (columns - 1) * strides[1] + 1
        file = tmp_path / str(len(list(tmp_path.iterdir())))
        storage = torch.from_file(str(file), True, size, dtype=torch.float16)
        t = storage.as_strided((rows, columns), strides)
        return t.copy_(torch.randn(rows, columns))

    x, residual = spread(5, 8, 2**30 + 1, 1), spread(5, 4, 2**30 + 1, 1)
    weight = spread(4, 8, 2**30, 1), spread(4, 8, 1, 2**29)
    for w in weight:
        got = linear(x, w, residual=residual)
        testing.assert_same_bits(got, linear(x.clone(), w.clone(), residual=residual.clone()))
    got = linear_backward_weight(residual, x, torch.float16, (True, True))
    want = linear_backward_weight(residual.clone(), x.clone(), torch.float16, (True, True))
    testing.assert_same_bits(list(got), list(want))


def test_a_bad_row_stays_alone():
    x, weight, bias = torch.randn(40, 20), torch.randn(33, 20), torch.randn(33)
    x[7, 3] = x[21, 19] = float("nan")
    x, weight, bias = (t.to(DEVICE) for t in (x, weight, bias))
    y = linear(x, weight, bias, norm=(weight[0], weight[1]))
    bad = [7, 21]
    assert not y[bad].isfinite().any()
    y[bad] = 0
    assert y.isfinite().all()


def mixed(name, args):
    """The dtypes under autocast: what it casts is half, the rest stays float32."""
    op = OPS[name]
    return [
        arg.half() if isinstance(arg, Tensor) and arg_name in op.autocast else arg
        for arg_name, arg in zip(op.names, args, strict=False)
    ]


def as_good_in_half(op, args) -> None:
    """Dtypes are the reference's, and values are right as far as half precision tells."""
    results = []
    for backend in ("triton", "reference"):
        result = op(*args, backend)
        results.append([result] if isinstance(result, Tensor) else result)
    assert [t.dtype for t in results[0]] == [t.dtype for t in results[1]]
    exact = op(*convert(args, Tensor.double), "reference")
    exact = [exact] if isinstance(exact, Tensor) else exact
    testing.assert_as_good_as_torch(*(convert(given, Tensor.half) for given in results), exact)


@pytest.mark.parametrize("name", NAMES)
def test_dtypes_of_autocast(name):
    op = OPS[name]
    for sample in SAMPLES[name].values():
        args = mixed(name, sample(randn(torch.float32, DEVICE)))
        as_good_in_half(op, args)
        as_good_in_half(op.backward, backward_inputs(op, args, op(*args, "triton")))


@pytest.mark.parametrize("name", NAMES)
def test_each_gradient_can_be_asked_for_alone(name):
    op = OPS[f"{name}_backward"]
    for sample in list(SAMPLES[op.name].values())[:2]:
        *inputs, needs = sample(randn(torch.float32, DEVICE))
        every = iter(op(*inputs, needs, "triton"))
        for index in [index for index, need in enumerate(needs) if need]:
            alone = [index == other for other in range(len(needs))]
            testing.assert_close_to_rounding(op(*inputs, alone, "triton"), [next(every)])
        assert op(*inputs, [False] * len(needs), "triton") == []


def test_float32_products_are_those_of_torch(monkeypatch):
    x, weight = torch.randn(4, 8, device=DEVICE), torch.randn(8, 8, device=DEVICE)
    launch = mock.Mock()
    monkeypatch.setattr(_triton, "launch", launch)
    for setting, wanted in (("ieee", "ieee"), ("tf32", "tf32")):
        monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", setting)
        linear(x, weight)
        assert launch.call_args.kwargs["PRECISION"] == wanted


def test_refusals():
    make = randn(torch.float32, DEVICE)
    args = SAMPLES["channel_mlp"]["mixer"](make)
    op, w1 = OPS["channel_mlp"], OPS["channel_mlp"].names.index("w1")
    assert op.refusal("triton", *args) is None
    wide = (*args[:w1], args[w1].double(), *args[w1 + 1 :])
    assert op.refusal("triton", *wide) == (
        "w1 must be bfloat16, float16 or float32, got torch.float64"
    )
    half = (*args[:w1], args[w1].half(), *args[w1 + 1 :])
    assert op.refusal("triton", *half) == "w1 is torch.float16, w2 is torch.float32"
    x, weight, *_ = SAMPLES["shift_linear"]["odd-sides"](make)
    many = Shift(((0, 1),) * 129).spec
    reason = OPS["shift_linear"].refusal("triton", x, weight, None, many, "none", None, None)
    assert reason == "takes at most 128 steps, got 129"


def test_auto_waits_for_a_measurement_of_channel_mlp(monkeypatch):
    monkeypatch.setattr(_triton, "INTERPRETED", False)
    for name in ("channel_mlp", "channel_mlp_backward"):
        args = next(iter(SAMPLES[name].values()))(randn(torch.bfloat16))
        assert "not yet measured faster" in OPS[name].kernels["triton"][2](*args)
