"""The gradients of the CPU kernels: of many tasks, for whoever asks, by however many threads."""

from itertools import product

import pytest
import torch
from samples import convert, randn

from shiftmlp import Shift, _native, testing
from shiftmlp.ops import OPS

pytestmark = pytest.mark.skipif(
    _native.why_not("cpu") is not None, reason="the native library is not built"
)


def token_mlp_arguments(scaled=True):
    make = randn(torch.float32)
    B, S, C, D = 4, 196, 768, 384
    linears = make(D, S) / S**0.5, make(D), make(S, D) / D**0.5, make(S)
    norm = "layer_norm", make(C), make(C), 1e-6
    return make(B, S, C), *norm, *linears, "gelu", make(C) if scaled else None


def token_gate_arguments():
    make = randn(torch.float32)
    B, S, C = 4, 196, 420
    norm = "layer_norm", make(C), make(C), 1e-6
    return make(B, S, C), make(B, S, C), *norm, make(S, S) / S**0.5, make(S)


def token_linear_arguments(norm="affine", S=1100):
    """Of so many weights that their sum costs more than a part's."""
    make = randn(torch.float32)
    B, C = 4, 70
    norm = norm, make(C), make(C), 1e-6
    return make(B, S, C), *norm, make(S, S) / S**0.5, make(S), make(C)


def channel_arguments(shift: str | None, B=4, H=16, W=17, C=70, D=270):
    make = randn(torch.bfloat16)
    norm = "layer_norm", make(C), make(C), 1e-6
    linears = make(D, C) / C**0.5, make(D), make(C, D) / D**0.5, make(C)
    return make(B, H, W, C), *norm, *linears, *([shift] if shift else []), "gelu", *norm, make(C)


def shift_linear_arguments():
    make = randn(torch.bfloat16)
    return make(4, 16, 17, 70), make(130, 70), make(130), Shift.S2.spec, "gelu", make(130)


MANY_TASKS = {
    "token_linear": token_linear_arguments,
    "token_linear, layer_norm": lambda: token_linear_arguments("layer_norm", 196),
    "token_mlp": token_mlp_arguments,
    "token_mlp, not scaled": lambda: token_mlp_arguments(False),
    "token_gate": token_gate_arguments,
    "channel_mlp": lambda: channel_arguments(None),
    "shift_linear": shift_linear_arguments,
    "shift_mlp": lambda: channel_arguments("keep chunk 2,1 -1,3 0,0"),
}


def forward(name, args, residual, backend):
    op = OPS[name]
    return op(*args, backend) if name == "token_gate" else op(*args, residual, backend)


def wanted(args):
    """All gradients that there are."""
    return [arg is not None for arg in args if arg is None or isinstance(arg, torch.Tensor)]


@pytest.fixture(params=product(MANY_TASKS, (torch.float32, torch.bfloat16)), ids=str)
def many_tasks(request):
    """The name of an op and its arguments."""
    sample, dtype = request.param
    return sample.partition(",")[0], convert(MANY_TASKS[sample](), lambda t: t.to(dtype))


def test_threads_do_not_change_a_bit_of_many_tasks(many_tasks):
    name, args = many_tasks
    op, y = OPS[name], forward(*many_tasks, None, "reference")
    dy, residual = torch.randn_like(y), torch.randn_like(y)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            y = forward(name, args, residual, "cpu")
            results.append([y, *op.backward(dy, *args, wanted(args), "cpu")])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        testing.assert_same_bits(result, results[0])


def test_gradients_of_many_tasks_are_as_good_as_torchs(many_tasks):
    name, args = many_tasks
    op, dy = OPS[name].backward, torch.randn_like(forward(name, args, None, "reference"))
    given = dy, *args, wanted(args)
    if reason := op.refusal("cpu", *given):
        pytest.skip(reason)
    exact = op(*convert(given, torch.Tensor.double), "reference")
    testing.assert_as_good_as_torch(op(*given, "cpu"), op(*given, "reference"), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_more_hidden_channels_than_a_chunk_has(dtype):
    """Sums of parts, and of strips in each; and dy itself, in 16 bits, times several blocks."""
    op, make = OPS["channel_mlp"], randn(dtype)
    linears = make(1100, 70) / 8, make(1100), make(70, 1100) / 33, make(70)
    norm = "none", None, None, 0.0
    args = make(2, 500, 70), *norm, *linears, "gelu", *norm, None
    dy = make(2, 500, 70)
    needs = [True, False, False, True, True, True, True, False, False, False]

    def results(backend, change=torch.clone):
        y = op(*convert(args, change), None, backend)
        return [y, *op.backward(change(dy), *convert(args, change), needs, backend)]

    exact = results("reference", torch.Tensor.double)
    testing.assert_as_good_as_torch(results("cpu"), results("reference"), exact)


def test_every_gradient_can_be_asked_for_alone(many_tasks):
    name, args = many_tasks
    op, dy = OPS[name], torch.randn_like(forward(name, args, None, "reference"))
    asked = wanted(args)
    indices = [i for i, need in enumerate(asked) if need]
    every = op.backward(dy, *args, asked, "cpu")
    for index, gradient in zip(indices, every, strict=True):
        needs = [i == index for i in range(len(asked))]
        testing.assert_same_bits(op.backward(dy, *args, needs, "cpu"), [gradient])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("sample", ["channel_mlp", "shift_linear", "shift_mlp"])
def test_special_values_of_a_gradient_are_where_float64_has_them(sample, activation, value):
    # PyTorch's products in bfloat16 spread NaN over whole rows on processors with AMX.
    op = OPS[sample]
    args = [activation if arg == "gelu" else arg for arg in MANY_TASKS[sample]()]
    args = [None if arg is args[-1] else arg for arg in args]
    for given in ("dy", "x"):
        dy = torch.randn_like(op(*args, None, "reference"))
        x = args[0].clone()
        {"dy": dy, "x": x}[given][1, 2, 3, 4] = value
        given_to = dy, x, *args[1:], wanted(args)
        ours = op.backward(*given_to, "cpu")
        exact = op.backward(*convert(given_to, torch.Tensor.double), "reference")
        for mine, other in zip(ours, exact, strict=True):
            assert torch.equal(mine.isfinite(), other.isfinite())


def token_integers(name, B=3, S=13, D=7, C=70):
    """dy and the arguments of ``name``, small integers: sums of their products are exact."""
    make = lambda *shape: torch.randint(-2, 3, shape).float()  # noqa: E731
    affine = "affine", make(C), make(C), 0.0
    if name == "token_gate":
        return make(B, S, C), make(B, S, C), make(B, S, C), *affine, make(S, S), make(S)
    layers = [make(17, S), make(17)] if name == "token_linear" else [make(D, S), make(D)]
    if name == "token_mlp":
        layers += [make(17, D), make(17), "relu"]
    return make(B, 17, C), make(B, S, C), *affine, *layers, make(C)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("name", ["token_linear", "token_mlp", "token_gate"])
def test_gradients_of_affine_tokens_are_exact(name, scaled, dtype):
    """Those of the scale come without the result: no term of its norm and its bias is left out."""
    op, given = OPS[name], convert(token_integers(name), lambda t: t.to(dtype))
    if not scaled and name != "token_gate":
        given[-1] = None
    asked = wanted(given[1:])
    for index in range(len(asked)):
        for needs in (asked, [i == index and asked[i] for i in range(len(asked))]):
            exact = op.backward(*convert(given, torch.Tensor.double), needs, "reference")
            ours = op.backward(*given, needs, "cpu")
            for mine, other in zip(ours, exact, strict=True):
                assert torch.equal(mine, other.to(mine.dtype))


@pytest.mark.parametrize("name", ["token_linear", "token_mlp"])
def test_a_channel_scaled_by_zero_has_a_gradient_of_its_scale(name):
    op, (*given, scale) = OPS[name], token_integers(name)
    results = [op.backward(*given, s, [True] * len(op.asked), "cpu") for s in (scale, 0 * scale)]
    testing.assert_same_bits(results[1][-1], results[0][-1])
    assert results[0][-1].any() and not any(gradient.any() for gradient in results[1][:-1])


@pytest.mark.parametrize("name", ["token_linear", "token_mlp"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_special_values_stay_in_the_gradients_of_their_channel(name, value):
    op, (dy, x, *given) = OPS[name], token_integers(name)
    needs = [name in ("x", "norm_weight", "norm_bias", "scale") for name in op.asked]
    clean = op.backward(dy, x, *given, needs, "cpu")
    for spoilt in (dy, x):
        spoilt[1, 3, 68] = value
    gradients = op.backward(dy, x, *given, needs, "cpu")
    others = [i for i in range(70) if i != 68]
    for gradient, other in zip(gradients, clean, strict=True):
        testing.assert_same_bits(gradient[..., others], other[..., others])
    assert not gradients[-1][68].isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lanes_beyond_the_channels_reach_no_gradient(dtype):
    """There the hidden is infinite as well, and times dy, which is zero there, would be NaN."""
    op = OPS["token_mlp"].backward
    given = convert(token_integers("token_mlp"), lambda t: t.to(dtype))
    given[0], given[7][2], given[-1] = given[0].abs() + 1, float("inf"), None
    needs = [name == "w2" for name in OPS["token_mlp"].asked]
    (ours,), (exact,) = (
        op(*args, needs, backend)
        for args, backend in ((given, "cpu"), (convert(given, torch.Tensor.double), "reference"))
    )
    assert exact[:, 2].isposinf().all() and torch.equal(ours, exact.to(ours.dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_special_values_stay_in_their_channel(value):
    args = list(token_mlp_arguments())
    x = args[0][:1, :, :70].clone()
    x[0, 3, 68] = value
    given = x, "none", None, None, 0.0, *args[5:10], None, None
    y = OPS["token_mlp"](*given, "cpu")
    assert y[..., :68].isfinite().all() and y[..., 69:].isfinite().all()
    assert not y[..., 68].isfinite().any()


@pytest.mark.parametrize(
    ("shape", "threads", "reason"),
    [
        ((1, 196, 384), 1, None),
        ((1, 196, 320), 1, "from 65536 numbers"),
        ((1, 1024, 128), 1, "256 channels"),
        ((1, 196, 384), 2, "from 131072 numbers"),
        ((2, 196, 384), 2, None),
        ((3, 196, 384), 8, "from 262144 numbers"),
    ],
)
def test_small_gradients_are_left_to_pytorch(shape, threads, reason):
    if _native.cpu_engine() == "plain":
        pytest.skip("everything is")
    x, S = torch.zeros(shape), shape[1]
    given = x, "none", None, None, 0.0, torch.zeros(S, S), None, None
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        told = OPS["token_linear"].backward.explain(x, *given, [True] * 6)["cpu"]
    finally:
        torch.set_num_threads(before)
    assert told is None if reason is None else reason in told
