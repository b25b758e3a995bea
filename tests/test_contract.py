"""What every op promises to PyTorch: schema, fake, compiler, autocast, FLOP counts, export."""

import gc
import os
import subprocess
import sys
import weakref

import options
import pytest
import torch
from samples import SAMPLES, randn
from test_gradients import plain
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

import shiftmlp
from shiftmlp import testing
from shiftmlp.ops import FORWARD, OPS

EVERY_OPTION = [pytest.param(op.name, options.subsets(op.name)[-1], id=op.name) for op in FORWARD]


def leaves(chosen, dtype=torch.float32) -> dict:
    make = randn(dtype)
    return options.tensors(chosen, lambda *shape: make(*shape).requires_grad_())


def call(name, chosen, made, **more):
    return getattr(shiftmlp.functional, name)(**options.arguments(chosen, made), **more)


@pytest.mark.parametrize(
    ("op", "sample"),
    [
        pytest.param(op, sample, id=f"{op.name}-{name}")
        for op in FORWARD
        for name, sample in list(SAMPLES[op.name].items())[:12]
    ],
)
def test_opcheck(op, sample):
    make = randn(torch.float32)
    args = sample(lambda *shape: make(*shape).requires_grad_())
    torch.library.opcheck(op.overload, (*args, "reference"))


@pytest.mark.parametrize(
    ("op", "sample"),
    [
        pytest.param(forward.backward, sample, id=f"{forward.backward.name}-{name}")
        for forward in FORWARD
        for name, sample in list(SAMPLES[forward.backward.name].items())[:3]
    ],
)
def test_opcheck_of_the_backward(op, sample):
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    args = sample(randn(torch.float32))
    torch.library.opcheck(op.overload, (*args, "reference"), test_utils=tests)


@pytest.mark.parametrize(("name", "chosen"), EVERY_OPTION)
def test_compiles_whole_without_recompiling_per_batch(name, chosen):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(
        lambda made: call(name, chosen, made), fullgraph=True, dynamic=True, backend=counter
    )
    made = leaves(chosen)
    batched = [key for key in made if key in ("x", "u", "v", "residual")]
    for batch in (7, 11, 13):  # equal to no other size, which Dynamo would take for the same
        parts = {
            key: t.detach().expand(batch, *t.shape).clone().requires_grad_()
            if key in batched
            else t
            for key, t in made.items()
        }
        eager, compiled = call(name, chosen, parts), function(parts)
        testing.assert_same_bits(compiled, eager)
        dy = torch.randn_like(eager)
        grads = [torch.autograd.grad(y, parts.values(), dy) for y in (compiled, eager)]
        testing.assert_same_bits(*grads)
    assert counter.frame_count == 1


@pytest.mark.parametrize(("name", "chosen"), EVERY_OPTION)
def test_inductor_compiles_forward_and_backward(name, chosen):
    torch._dynamo.reset()
    function = torch.compile(lambda made: call(name, chosen, made) * 2, fullgraph=True)
    made = leaves(chosen)
    eager, compiled = call(name, chosen, made) * 2, function(made)
    testing.assert_close_to_rounding(compiled, eager)
    dy = torch.randn_like(eager)
    grads = [torch.autograd.grad(y, made.values(), dy) for y in (compiled, eager)]
    testing.assert_close_to_rounding(*grads)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_use_backend_reaches_compiled_code(backend):
    torch._dynamo.reset()
    function = torch.compile(
        lambda x: shiftmlp.functional.spatial_shift(x), fullgraph=True, backend="aot_eager"
    )
    x = torch.randn(1, 3, 3, 4)
    function(x)
    seen = []
    op = OPS["spatial_shift"]
    launch, *rest = op.kernels["reference"]
    op.kernels["reference"] = (lambda *args: seen.append(1) or launch(*args), *rest)
    try:
        with shiftmlp.use_backend("reference"):
            function(x)
    finally:
        op.kernels["reference"] = (launch, *rest)
    assert seen


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "chosen"), EVERY_OPTION)
def test_autocast_gives_the_unfused_dtype(name, chosen, x_dtype):
    """Products in bfloat16; norms, scale and residual as they are; gradients as their tensors."""
    made = leaves(chosen)
    for key in {"x", "u", "v"} & set(made):
        made[key] = made[key].detach().to(x_dtype).requires_grad_()
    exact = {key: t.detach().double().requires_grad_() for key, t in made.items()}
    with torch.autocast("cpu", torch.bfloat16):
        ours = call(name, chosen, made)
        theirs = plain(name, options.arguments(chosen, made))
    truth = plain(name, options.arguments(chosen, exact))
    if name == "spatial_shift":
        assert ours.dtype == x_dtype
        return
    testing.assert_as_good_as_torch(ours, theirs, truth)
    dy = torch.randn_like(ours)
    grads = torch.autograd.grad(ours, made.values(), dy)
    theirs = torch.autograd.grad(theirs, made.values(), dy)
    truth = torch.autograd.grad(truth, exact.values(), dy.double())
    testing.assert_as_good_as_torch(grads, theirs, truth, testing.GRADIENT_SLACK)


@pytest.mark.parametrize(("name", "chosen"), EVERY_OPTION)
def test_mixed_dtypes_outside_autocast_raise(name, chosen):
    if name == "spatial_shift":
        pytest.skip("has one tensor")
    made = leaves(chosen)
    for key in made:
        if key in ("x", "v"):
            continue
        mixed = made | {key: made[key].to(torch.bfloat16)}
        with pytest.raises(TypeError, match="torch.float32 like the input, got torch.bfloat16"):
            call(name, chosen, mixed)


@pytest.mark.parametrize(("name", "chosen"), EVERY_OPTION)
def test_flops_are_those_of_the_plain_modules(name, chosen):
    made = leaves(chosen)
    counts = []
    for function in (call, lambda name, chosen, made: plain(name, options.arguments(chosen, made))):
        with FlopCounterMode(display=False) as counter:
            y = function(name, chosen, made)
            forward = counter.get_total_flops()
            y.sum().backward()
        counts.append((forward, counter.get_total_flops()))
    assert counts[0] == counts[1]
    assert name == "spatial_shift" or counts[0][1] == 3 * counts[0][0] > 0


@pytest.mark.parametrize(("name", "chosen"), EVERY_OPTION)
def test_an_export_holds_no_op_of_ours(name, chosen):
    made = {key: t.detach() for key, t in leaves(chosen).items()}

    class Module(torch.nn.Module):
        def forward(self, made):
            return call(name, chosen, made)

    program = torch.export.export(Module(), (made,))
    assert "shiftmlp" not in str(program.graph)
    testing.assert_close_to_rounding(program.module()(made), Module()(made))


@pytest.mark.parametrize(("name", "chosen"), EVERY_OPTION)
def test_named_backend_runs_or_raises(name, chosen):
    op = OPS[name]
    made = {key: t.detach() for key, t in leaves(chosen).items()}
    wanted = call(name, chosen, made, backend="reference")
    for backend in ("cuda", "triton", "cpu"):
        if backend not in op.kernels:
            with pytest.raises(NotImplementedError, match=f"{backend} cannot run {name}: has no"):
                call(name, chosen, made, backend=backend)
    with pytest.raises(ValueError, match="backend must be one of .* got 'gpu'"):
        call(name, chosen, made, backend="gpu")
    testing.assert_close_to_rounding(call(name, chosen, made), wanted)


def test_all_refusals_are_told():
    op = OPS["token_mlp"]
    args = SAMPLES["token_mlp"]["mixer"](randn(torch.float32))
    kept = dict(op.kernels)
    op.kernels.clear()
    op.kernels["reference"] = (kept["reference"][0], lambda *a: "is out", lambda *a: None)
    try:
        with pytest.raises(NotImplementedError, match="(?s)cuda: has no.*reference: is out"):
            op(*args, "auto")
    finally:
        op.kernels.clear()
        op.kernels.update(kept)


def test_auto_passes_over_what_is_slower():
    op = OPS["spatial_shift"]
    args = SAMPLES["spatial_shift"]["one-map"](randn(torch.float32))
    kept = dict(op.kernels)
    op.kernels["cuda"] = (lambda *a: "ran", lambda *a: None, lambda *a: "loses here")
    try:
        assert isinstance(op(*args, "auto"), torch.Tensor)
        assert op(*args, "cuda") == "ran"
        assert op.explain(*args)["cuda"] == "loses here"
    finally:
        op.kernels.clear()
        op.kernels.update(kept)


def test_a_graph_is_freed_without_the_collector():
    gc.disable()
    try:
        x = torch.randn(2, 3, 3, 8, requires_grad=True) * 2
        weight = torch.randn(4, 8, requires_grad=True)
        y = shiftmlp.functional.shift_linear(x, weight)
        saved = weakref.ref(x)
        y.sum().backward()
        del x, y
        assert saved() is None
    finally:
        gc.enable()


def python(code: str, **environment) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k not in ("HOME", "TRITON_INTERPRET")}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def test_import_is_quick_and_quiet(tmp_path):
    code = """
import sys, time, os, torch
before = set(os.listdir("."))
start = time.perf_counter()
import shiftmlp
took = time.perf_counter() - start
loaded = [m for m in ("triton", "timm", "rich", "matplotlib", "torchvision") if m in sys.modules]
assert not loaded, loaded
assert took < 2, took
assert set(os.listdir(".")) == before
"""
    ran = python(code, PYTHONPATH=os.getcwd())
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_works_without_triton_compiler_and_home():
    code = """
import sys
sys.modules["triton"] = None
import torch, shiftmlp
x = torch.randn(1, 3, 3, 4, requires_grad=True)
shiftmlp.functional.spatial_shift(x).sum().backward()
try:
    shiftmlp.functional.spatial_shift(x, backend="triton")
except NotImplementedError as error:
    print(error)
"""
    ran = python(code, PYTHONPATH=os.getcwd(), PATH="")
    assert ran.returncode == 0, ran.stderr
    assert "triton cannot run spatial_shift" in ran.stdout


@pytest.mark.parametrize("variable", ["SHIFTMLP_BACKEND", "SHIFTMLP_DISABLE"])
def test_environment_variables(variable):
    value = {"SHIFTMLP_BACKEND": "reference", "SHIFTMLP_DISABLE": "1"}[variable]
    code = "from shiftmlp import _settings; print(_settings.resolve('auto'))"
    ran = python(code, PYTHONPATH=os.getcwd(), **{variable: value})
    assert ran.stdout.strip() == "reference", ran.stderr


def test_bad_environment_variable_is_told():
    ran = python("import shiftmlp", PYTHONPATH=os.getcwd(), SHIFTMLP_BACKEND="gpu")
    assert "backend must be one of" in ran.stderr
