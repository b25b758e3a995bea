"""The engines of the CPU kernels, one for each instruction set: right, and kept apart."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from guarded import guarded
from samples import SAMPLES, convert, randn
from test_kernels import row_pitch, transposed

from shiftmlp import Shift, _native, testing
from shiftmlp.ops import OPS

ROOT = Path(__file__).parent.parent
OBJECTS = sorted(ROOT.glob("build/temp*/_C_cpu/*.o"))
KERNELS = [op for op in OPS.values() if "cpu" in op.kernels and "spatial" not in op.name]
NEEDS = {"avx2": ("avx2", "fma", "f16c"), "avx512": ("avx512f", "avx512bw", "avx512vl")}
NEEDS["avx512_bf16"] = (*NEEDS["avx512"], "avx512bf16")

pytestmark = pytest.mark.skipif(
    _native.why_not("cpu") is not None, reason="the native library is not built"
)

ALL_OPS = """
import sys
import torch
torch.manual_seed(0)
from samples import SAMPLES, convert, randn
from shiftmlp import _native, testing
from shiftmlp.ops import OPS
for name in sys.argv[1:]:
    for sample in SAMPLES[name].values():
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            args = sample(randn(dtype))
            if OPS[name].refusal("cpu", *args):
                continue
            ours, theirs = (OPS[name](*args, backend) for backend in ("cpu", "reference"))
            if dtype in (torch.float32, torch.float64):
                testing.assert_close_to_rounding(ours, theirs)
            else:
                exact = OPS[name](*convert(args, torch.Tensor.double), "reference")
                testing.assert_as_good_as_torch(ours, theirs, exact)
print(_native.cpu_engine())
"""


@pytest.mark.parametrize("engine", ["default", *NEEDS])
def test_every_engine_agrees_with_the_reference(engine):
    features = _native.cpu_features()
    if missing := [name for name in NEEDS.get(engine, ()) if not features.get(name)]:
        pytest.skip(f"the processor has no {', '.join(missing)}")
    env = os.environ | {
        "ATEN_CPU_CAPABILITY": engine.removesuffix("avx512_bf16"),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", ALL_OPS, *(op.name for op in KERNELS)],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == {"default": "plain"}.get(engine, engine)


def test_engine_is_the_best_allowed():
    features = _native.cpu_features()
    if not features or "ATEN_CPU_CAPABILITY" in os.environ:
        pytest.skip("the processor's features are unknown or restricted")
    able = [name for name, needed in NEEDS.items() if all(features.get(n) for n in needed)]
    assert _native.cpu_engine() == (["plain"] + able)[-1]


def symbols(path: Path) -> list[list[str]]:
    done = subprocess.run(["nm", path], capture_output=True, text=True, check=True)
    return [line.split()[-2:] for line in done.stdout.splitlines()]


@pytest.mark.skipif(not OBJECTS or not shutil.which("objdump"), reason="no objects or no binutils")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.name)
def test_code_of_an_instruction_set_stays_in_its_unit(path):
    if path.name.startswith("engine_"):
        exported = [name for kind, name in symbols(path) if kind in "TWVuBDRi"]
        assert exported == [f"shiftmlp_engines_{path.name.split('.')[0][7:]}"]
    if not re.match("engine_avx", path.name):
        code = subprocess.run(["objdump", "-d", path], capture_output=True, text=True).stdout
        assert not re.search(r"%[yz]mm", code)


@pytest.mark.parametrize("path", [p for p in OBJECTS if "_bf16" in p.name], ids=lambda p: p.name)
def test_sums_of_dot_products_stay_in_registers(path):
    code = subprocess.run(["objdump", "-d", path], capture_output=True, text=True).stdout
    lines = dict(re.findall(r"^ *([0-9a-f]+):\t(.*)$", code, re.M))
    places = {address: index for index, address in enumerate(lines)}
    loops = []
    for end, line in enumerate(lines.values()):
        jump = re.search(r"\tj\w+ +([0-9a-f]+)", line)
        start = places.get(jump[1], end) if jump else end
        body = list(lines.values())[start:end]
        if any("vdpbf16ps" in inner for inner in body) and not any("\tj" in i for i in body):
            loops.append(body)
    assert max(sum("vdpbf16ps" in line for line in body) for body in loops) == 24
    assert not [line for body in loops for line in body if "zmm" in line and "%rsp" in line]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", [torch.clone, transposed, row_pitch], ids=lambda f: f.__name__)
def test_products_of_every_size_are_exact_and_read_no_further(layout, dtype):
    """Rows and terms to both sides of a pair, a panel and a register; weights beside a page that
    kills who reads it. Sums of small integers are exact, and the residual keeps them in float32."""
    for K in (1, 2, 3, 15, 16, 17, 33, 64, 129):
        for N in (1, 2, 5, 6, 7, 11, 12, 13, 17, 25):
            x, weight, bias = (
                torch.randint(-2, 3, shape).to(dtype) for shape in ((2, K, 70), (N, K), (N,))
            )
            weight = guarded(layout(weight), "end")
            args = x, "none", None, None, 0.0, weight, bias, None, torch.zeros(2, N, 70)
            exact = OPS["token_linear"](*convert(args, torch.Tensor.double), "reference")
            y = OPS["token_linear"](*args, "cpu")
            assert torch.equal(y.double(), exact), f"K {K}, N {N}"


@pytest.mark.parametrize("name", ["token_linear", "channel_mlp"])
def test_products_of_every_number_of_lanes_are_exact(name):
    """To both sides of one register and of a block, in any engine, which the sums of a last lone
    register share out: so many terms as are dealt evenly, and not."""
    for lanes in (1, 4, 5, 8, 9, 15, 16, 17, 24, 25, 32, 33, 64, 65, 81):
        for K in (1, 3, 4, 6, 17, 131):
            x, weight, out = (
                torch.randint(-2, 3, shape).float() for shape in ((1, K, lanes), (13, K), (5, 13))
            )
            if name == "token_linear":
                args = x, "none", None, None, 0.0, weight, None, None, None
            else:
                no_norm = "none", None, None, 0.0
                x = x.mT.contiguous()
                args = x, *no_norm, weight, None, out, None, "relu", *no_norm, None, None
            exact = OPS[name](*convert(args, torch.Tensor.double), "reference")
            y = OPS[name](*args, "cpu")
            assert torch.equal(y.double(), exact), f"{lanes} lanes, K {K}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("given", ["x", "weight"])
@pytest.mark.parametrize("layout", [torch.clone, transposed], ids=lambda f: f.__name__)
def test_special_values_of_the_last_of_an_odd_number_of_terms(layout, given, value):
    make = randn(torch.bfloat16)
    x, weight = make(1, 7, 70), make(13, 7)
    {"x": x[0], "weight": weight}[given][-1, -1] = value
    args = x, "none", None, None, 0.0, layout(weight), None, None, None
    y = OPS["token_linear"](*args, "cpu")
    exact = OPS["token_linear"](*convert(args, torch.Tensor.double), "reference")
    assert torch.equal(y.isnan(), exact.isnan())
    assert torch.equal(y[y.isinf()].double(), exact[exact.isinf()])
    assert exact.isfinite().any() and not exact.isfinite().all()


def token_mlp_arguments():
    make = randn(torch.float32)
    B, S, C, D = 4, 196, 768, 384
    args = make(B, S, C), "layer_norm", make(C), make(C), 1e-6, make(D, S), make(D), make(S, D)
    return *args, make(S), "gelu", make(C)


def channel_arguments(shift: str | None, B=4, H=16, W=17, C=70, D=270):
    make = randn(torch.bfloat16)
    norm = "layer_norm", make(C), make(C), 1e-6
    linears = make(D, C) / C**0.5, make(D), make(C, D) / D**0.5, make(C)
    return make(B, H, W, C), *norm, *linears, *([shift] if shift else []), "gelu", *norm, make(C)


def shift_linear_arguments():
    make = randn(torch.bfloat16)
    return make(4, 16, 17, 70), make(130, 70), make(130), Shift.S2.spec, "gelu", make(130)


MANY_TASKS = {
    "token_mlp": token_mlp_arguments,
    "channel_mlp": lambda: channel_arguments(None),
    "shift_linear": shift_linear_arguments,
    "shift_mlp": lambda: channel_arguments("keep chunk 2,1 -1,3 0,0"),
}


@pytest.mark.parametrize("name", MANY_TASKS)
def test_threads_do_not_change_a_bit_of_many_tasks(name):
    op, args = OPS[name], MANY_TASKS[name]()
    y = op(*args, None, "reference")
    dy, residual = torch.randn_like(y), torch.randn_like(y)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            y = op(*args, residual, "cpu")
            results.append([y, *op.backward(dy, *args, [True] * len(op.asked), "cpu")])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        testing.assert_same_bits(result, results[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MANY_TASKS)
def test_gradients_of_many_tasks_are_as_good_as_torchs(name, dtype):
    op, args = OPS[name].backward, convert(MANY_TASKS[name](), lambda t: t.to(dtype))
    dy = torch.randn_like(OPS[name](*args, None, "reference"))
    given = dy, *args, [True] * len(OPS[name].asked)
    if reason := op.refusal("cpu", *given):
        pytest.skip(reason)
    exact = op(*convert(given, torch.Tensor.double), "reference")
    testing.assert_as_good_as_torch(op(*given, "cpu"), op(*given, "reference"), exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_more_hidden_channels_than_a_chunk_has(dtype):
    """Sums of parts; and dy itself, in 16 bits, times several blocks of lanes."""
    op, make = OPS["channel_mlp"], randn(dtype)
    linears = make(1100, 70) / 8, make(1100), make(70, 1100) / 33, make(70)
    norm = "none", None, None, 0.0
    args = make(2, 150, 70), *norm, *linears, "gelu", *norm, None
    dy = make(2, 150, 70)
    needs = [True, False, False, True, True, True, True, False, False, False]

    def results(backend, change=torch.clone):
        y = op(*convert(args, change), None, backend)
        return [y, *op.backward(change(dy), *convert(args, change), needs, backend)]

    exact = results("reference", torch.Tensor.double)
    testing.assert_as_good_as_torch(results("cpu"), results("reference"), exact)


@pytest.mark.parametrize("name", ["channel_mlp", "shift_linear", "shift_mlp"])
def test_every_gradient_can_be_asked_for_alone(name):
    op, args = OPS[name], MANY_TASKS[name]()
    dy = torch.randn_like(op(*args, None, "reference"))
    every = op.backward(dy, *args, [True] * len(op.asked), "cpu")
    for index, wanted in enumerate(every):
        needs = [i == index for i in range(len(every))]
        testing.assert_same_bits(op.backward(dy, *args, needs, "cpu"), [wanted])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("sample", ["channel_mlp", "shift_linear", "shift_mlp"])
def test_special_values_of_a_gradient_are_where_the_reference_has_them(sample, activation, value):
    op = OPS[sample]
    args = [activation if arg == "gelu" else arg for arg in MANY_TASKS[sample]()]
    args = [None if arg is args[-1] else arg for arg in args]
    for given in ("dy", "x"):
        dy = torch.randn_like(op(*args, None, "reference"))
        x = args[0].clone()
        {"dy": dy, "x": x}[given][1, 2, 3, 4] = value
        needs = [arg is not None for arg in args if arg is None or isinstance(arg, torch.Tensor)]
        ours, theirs = (op.backward(dy, x, *args[1:], needs, b) for b in ("cpu", "reference"))
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine.isfinite(), other.isfinite())


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_activation_is_within_a_millionth(activation):
    x = torch.linspace(-8, 8, 400_001).view(1, 1, -1)
    one = torch.ones(1, 1)
    args = x, "none", None, None, 0.0, one, None, one, None, activation, None
    exact = [arg.double() if isinstance(arg, torch.Tensor) else arg for arg in args]
    op = OPS["token_mlp"]
    y, truth = op(*args, None, "cpu"), op(*exact, None, "reference")
    assert (y - truth).abs().max() <= 1e-6
    needs = [True] + [False] * (len(op.asked) - 1)
    (dx,) = op.backward(torch.ones_like(x), *args, needs, "cpu")
    (truth,) = op.backward(torch.ones_like(x).double(), *exact, needs, "reference")
    assert (dx - truth).abs().max() <= 1e-6


@pytest.mark.parametrize("op", KERNELS, ids=lambda op: op.name)
def test_float64_does_not_mix(op):
    *args, last = next(iter(SAMPLES[op.name].values()))(randn(torch.float32))
    args[0] = args[0].double()
    assert "float64 must not mix" in op.refusal("cpu", *args, last)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_special_values_stay_in_their_channel(value):
    args = list(token_mlp_arguments())
    x = args[0][:1, :, :70].clone()
    x[0, 3, 68] = value
    given = x, "none", None, None, 0.0, *args[5:10], None, None
    y = OPS["token_mlp"](*given, "cpu")
    assert y[..., :68].isfinite().all() and y[..., 69:].isfinite().all()
    assert not y[..., 68].isfinite().any()
