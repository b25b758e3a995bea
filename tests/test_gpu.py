"""What only a GPU shows of the ops: repeats, streams, graphs, another device, 2^31 elements."""

import functools

import options
import pytest
import torch
from samples import SAMPLES, convert, randn
from test_contract import EVERY_OPTION, call
from test_kernels import listed
from torch import Tensor

from shiftmlp import testing
from shiftmlp.ops import OPS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
BACKENDS = ("cuda", "triton")
REPEATS = 1000
LONG = 200_000_000  # clocks, in which all is launched that waits for them
SAMPLE_OF_EACH = [
    pytest.param(op, backend, next(iter(SAMPLES[op.name].values())), id=f"{op.name}-{backend}")
    for op in OPS.values()
    for backend in BACKENDS
]


def arguments(op, backend, sample, device="cuda"):
    args = sample(randn(torch.bfloat16, device))
    if reason := op.refusal(backend, *args):
        pytest.skip(f"{backend} refuses: {reason}")
    return args


@pytest.mark.parametrize(("op", "backend", "sample"), SAMPLE_OF_EACH)
def test_a_thousand_repeats_are_equal(op, backend, sample):
    args = arguments(op, backend, sample)
    first = [t.view(torch.uint8).clone() for t in listed(op(*args, backend))]
    differ = torch.zeros((), dtype=torch.bool, device="cuda")
    for _ in range(REPEATS - 1):
        for t, wanted in zip(listed(op(*args, backend)), first, strict=True):
            differ |= (t.view(torch.uint8) != wanted).any()
    assert not differ


@pytest.mark.parametrize(("op", "backend", "sample"), SAMPLE_OF_EACH)
def test_runs_on_the_current_stream(op, backend, sample):
    """Behind what that stream has to do first, which writes the inputs."""
    args = arguments(op, backend, sample)
    wanted = listed(op(*args, backend))
    late = convert(args, torch.zeros_like)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(LONG)
        for to, from_ in zip(late, args, strict=True):
            if isinstance(to, Tensor):
                to.copy_(from_)
        ours = listed(op(*late, backend))
    torch.cuda.synchronize()
    testing.assert_same_bits(ours, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize(("op", "backend", "sample"), SAMPLE_OF_EACH)
def test_runs_where_the_tensors_are(op, backend, sample):
    args = arguments(op, backend, sample)
    others = convert(args, lambda t: t.to("cuda:1"))
    ours = listed(op(*others, backend))
    assert all(t.device == torch.device("cuda:1") for t in ours)
    testing.assert_same_bits([t.to("cuda:0") for t in ours], listed(op(*args, backend)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "chosen"), EVERY_OPTION)
def test_a_graph_replays_forward_and_backward_on_new_data(name, chosen, backend):
    make = randn(torch.bfloat16, "cuda")
    made = options.tensors(chosen, lambda *shape: make(*shape).requires_grad_())

    def step():
        y = call(name, chosen, made, backend=backend)
        return [y, *torch.autograd.grad(y, list(made.values()), dy)]

    try:
        dy = torch.randn_like(call(name, chosen, made, backend=backend))
        step()  # all that is made once
    except NotImplementedError as refusal:
        pytest.skip(str(refusal))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for t in (*made.values(), dy):
            t.normal_()
    graph.replay()
    testing.assert_same_bits(captured, step())


HUGE = {
    "token_linear": lambda f, x, w: f(x, w[:196, :196]),
    "token_mlp": lambda f, x, w: f(x, w[:64, :196], None, w[:196, :64], None),
    "channel_mlp": lambda f, x, w: f(x, w, None, w, None),
    "shift_mlp": lambda f, x, w: f(x.unflatten(1, (14, 14)), w, None, w, None),
    "shift_linear": lambda f, x, w: f(x.unflatten(1, (14, 14)), w),
    "spatial_shift": lambda f, x, w: f(x.unflatten(1, (14, 14))),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", HUGE)
def test_more_than_two_to_the_31_elements(name, backend):
    """The last images as by themselves, forward and backward."""
    import shiftmlp.functional as SF

    C, few = 512, 3
    if torch.cuda.mem_get_info()[0] < 60 << 30:
        pytest.skip("less than 60 GiB of free memory")
    torch.set_deterministic_debug_mode("default")  # NaN in all that is fresh would take as long
    x = torch.randn(few, 196, C, dtype=torch.bfloat16, device="cuda")
    weight = torch.randn(C, C, dtype=torch.bfloat16, device="cuda") / C**0.5
    huge = x.new_zeros(2**31 // (196 * C) + few, 196, C)
    huge[-few:] = x
    function = functools.partial(getattr(SF, name), backend=backend)
    results = []
    for given in (huge, x):
        given.requires_grad_()
        y = HUGE[name](function, given, weight)
        dy = torch.zeros_like(y)
        dy[-few:] = y.detach()[-few:]
        [dx] = torch.autograd.grad(y, given, dy)
        results.append([y[-few:].detach().clone(), dx[-few:].clone()])
        del y, dy, dx
    assert huge.numel() > 2**31
    testing.assert_close_to_rounding(*results)
