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

from shiftmlp import _native
from shiftmlp.ops import OPS
from shiftmlp.ops import _native as native

ROOT = Path(__file__).parent.parent
OBJECTS = sorted(ROOT.glob("build/temp*/_C_cpu/*.o"))
KERNELS = [op for op in OPS.values() if "cpu" in op.kernels and "spatial" not in op.name]
NEEDS = {"avx2": ("avx2", "fma", "f16c"), "avx512": ("avx512f", "avx512bw", "avx512vl")}
NEEDS["avx512_bf16"] = (*NEEDS["avx512"], "avx512bf16")
NEEDS["amx"] = (*NEEDS["avx512_bf16"], "amx_bf16")

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
        "ATEN_CPU_CAPABILITY": engine.removesuffix("amx"),
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


@pytest.fixture
def processor(monkeypatch):
    """Pretends that the processor is another one."""

    def pretend(engine, vendor, features):
        monkeypatch.setattr(_native, "cpu_engine", lambda: engine)
        monkeypatch.setattr(_native, "cpu_vendor", lambda: vendor)
        monkeypatch.setattr(_native, "cpu_features", lambda: dict.fromkeys(features, True))
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)

    native._rival_is_fast.cache_clear()
    yield pretend
    native._rival_is_fast.cache_clear()


def first_sample(op, make):
    return next(iter(SAMPLES[op.name].values()))(make)


TOKENS = {"token_linear", "token_mlp", "token_gate"}
CHANNELS = {"shift_linear", "shift_mlp", "channel_mlp"}
RECOMPUTING = {f"{name}_backward" for name in {*CHANNELS, "token_gate"}}


@pytest.mark.parametrize(
    ("dtype", "engine", "vendor", "features", "chosen"),
    [
        ("float32", "plain", "amd", [], set()),
        ("float32", "avx2", "amd", [], TOKENS | CHANNELS),
        ("float32", "avx2", "intel", ["avx512f"], set()),
        ("float32", "avx512", "amd", ["avx512f"], TOKENS | CHANNELS | RECOMPUTING),
        ("float32", "avx512_bf16", "intel", ["avx512f"], TOKENS),
        ("float32", "amx", "intel", ["avx512f"], TOKENS),
        (
            "bfloat16", "avx512", "intel", ["avx512f"],
            TOKENS | CHANNELS | RECOMPUTING | {"token_mlp_backward"},
        ),
        (
            "bfloat16", "avx512_bf16", "amd", ["avx512f", "avx512bf16"],
            TOKENS | {"token_gate_backward"},
        ),
        (
            "bfloat16", "amx", "intel", ["avx512f", "avx512bf16"],
            TOKENS | CHANNELS | {"token_gate_backward"},
        ),
    ],
)  # fmt: skip
def test_auto_knows_the_rival(processor, dtype, engine, vendor, features, chosen):
    processor(engine, vendor, features)
    asked = TOKENS | CHANNELS | RECOMPUTING | {"token_mlp_backward"}
    make = randn(getattr(torch, dtype))
    inputs = {op: first_sample(op, make) for op in KERNELS if op.name in asked}
    assert {op.name for op in inputs if op.kernels["cpu"][2](*inputs[op]) is None} == chosen


@pytest.mark.parametrize(
    ("dtype", "engine"), [(torch.bfloat16, "amx"), (torch.float32, "avx2")], ids=str
)
def test_auto_knows_when_fixed_costs_count(processor, dtype, engine):
    processor(engine, "intel", ["avx512f", "avx512bf16"] if engine == "amx" else [])
    op = OPS["token_mlp"].backward
    _, _, *others = first_sample(op, randn(dtype))
    for channels, wins in ((511, False), (512, True)):
        x = torch.empty(2, 256, channels, dtype=dtype)
        assert (op.kernels["cpu"][2](x, x, *others) is None) == wins


def symbols(path: Path) -> list[list[str]]:
    done = subprocess.run(["nm", path], capture_output=True, text=True, check=True)
    return [line.split()[-2:] for line in done.stdout.splitlines()]


@pytest.mark.skipif(not OBJECTS or not shutil.which("objdump"), reason="no objects or no binutils")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.name)
def test_code_of_an_instruction_set_stays_in_its_unit(path):
    if path.name.startswith("engine_"):
        exported = [name for kind, name in symbols(path) if kind in "TWVuBDRi"]
        assert exported == [f"shiftmlp_engines_{path.name.split('.')[0][7:]}"]
    if not re.match("engine_a", path.name):
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
    for K in (0, 1, 2, 3, 15, 16, 17, 33, 64, 129):
        for N in (1, 2, 5, 6, 7, 11, 12, 13, 17, 25, 33, 83):
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


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_activation_of_bfloat16_is_within_its_rounding(activation):
    """Of inputs that bfloat16 has: what is between its layers may be rounded, and what made it."""
    x = torch.linspace(-8, 8, 40_001).bfloat16().view(1, 1, -1)
    one = torch.ones(1, 1).bfloat16()
    args = x, "none", None, None, 0.0, one, None, one, None, activation, None
    op, exact = OPS["token_mlp"], convert(args, torch.Tensor.double)
    y, truth = op(*args, torch.zeros_like(x).float(), "cpu"), op(*exact, None, "reference")
    assert ((y - truth).abs() <= 2**-8 * truth.abs() + 6e-5).all()
    needs = [True] + [False] * (len(op.asked) - 1)
    (dx,) = op.backward(torch.ones_like(x), *args, needs, "cpu")
    (truth,) = op.backward(torch.ones_like(x).double(), *exact, needs, "reference")
    assert ((dx - truth).abs() <= 2**-8 * truth.abs() + 1.2e-4).all()


@pytest.mark.parametrize("op", KERNELS, ids=lambda op: op.name)
def test_float64_does_not_mix(op):
    *args, last = next(iter(SAMPLES[op.name].values()))(randn(torch.float32))
    args[0] = args[0].double()
    assert "float64 must not mix" in op.refusal("cpu", *args, last)
