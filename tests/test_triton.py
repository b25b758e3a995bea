"""Triton kernels beyond values: every shift, views, machine code, refusals."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from samples import SAMPLES, randn

from shiftmlp import Shift
from shiftmlp.ops import OPS, _triton

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from machine_code import SHARED_LIMIT  # noqa: E402

ARCH = "sm_90"  # `make kernels` has the others
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMED = {
    "S2": Shift.S2,
    "S2_SWAPPED": Shift.S2_SWAPPED,
    "axial-h": Shift.axial(5, "h"),
    "axial-w": Shift.axial(5, "w"),
    "cycle": Shift.cycle(3, "w"),
    "temporal": Shift.temporal(8),
    "partial": Shift.partial(12),
    "grid": Shift.grid(3),
    "diagonal": Shift(((2, 1), (-9, 3), (0, 0), (1, -1), (2**31 - 1, 1 - 2**31))),
}
BORDERED = {
    f"{name}-{border}": dataclasses.replace(shift, border=border)
    for name, shift in NAMED.items()
    for border in ("keep", "zero", "wrap")
} | {
    f"diagonal-{split}": dataclasses.replace(NAMED["diagonal"], split=split)
    for split in ("chunk", "cycle", "fold", "cycle_fold")
}


def assert_same_bits(x, shift=Shift.S2):
    """The kernels move and add like the reference, forward and backward, also where x is a view."""
    same = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    ops = torch.ops.shiftmlp
    results = [
        (ops.spatial_shift(t, shift.spec, name),)
        + tuple(ops.spatial_shift_backward(t, shift.spec, [True], name))
        for t, name in ((x, "triton"), (x.contiguous(), "reference"))
    ]
    for got, want in zip(*results, strict=True):
        assert got.is_contiguous()
        assert torch.equal(got.view(same), want.view(same))


@pytest.mark.parametrize("shift", BORDERED.values(), ids=BORDERED.keys())
def test_every_shift_moves_the_same_bits(shift):
    for dtype, H, W, C in [
        (torch.float32, 5, 3, 37),
        (torch.bfloat16, 1, 4, 48),
        (torch.float16, 4, 1, 8),
        (torch.float64, 3, 3, 3),
    ]:
        assert_same_bits(torch.randn(2, H, W, C, device=DEVICE).to(dtype), shift)


@pytest.mark.parametrize("C", [1, 4, 7, 8])
def test_few_channels(C):
    for shift in (Shift.S2, Shift.cycle(3, "h"), Shift.partial(12)):
        assert_same_bits(torch.randn(1, 4, 4, C, device=DEVICE), shift)


def test_many_tiles_of_pixels_and_channels():
    assert_same_bits(torch.randn(1, 14, 14, 200, device=DEVICE, dtype=torch.bfloat16))


@pytest.mark.parametrize("shape", [(0, 4, 4, 8), (2, 0, 4, 8), (2, 4, 4, 0), (4, 4, 8)], ids=str)
def test_empty_maps_and_no_batch(shape):
    assert_same_bits(torch.randn(shape, device=DEVICE))


VIEWS = {
    "permuted": lambda make: make(2, 16, 5, 6).permute(0, 2, 3, 1),
    "channels sliced": lambda make: make(2, 5, 6, 40)[..., 8:24],
    "channels strided": lambda make: make(2, 5, 6, 32)[..., ::2],
    "odd pitch": lambda make: make(2, 5, 6, 17)[..., :16],
    "expanded": lambda make: make(1, 1, 1, 1).expand(2, 5, 6, 16),
    "two batches": lambda make: make(2, 3, 5, 6, 16),
    "two batches, apart": lambda make: make(3, 2, 5, 6, 16).transpose(0, 1),
    "flipped axes": lambda make: make(2, 6, 5, 16).transpose(1, 2),
} | {
    f"offset {n}": lambda make, n=n: make(2 * 5 * 6 * 16 + 8)[n:-8 + n or None].view(2, 5, 6, 16)
    for n in range(1, 8)
}  # fmt: skip


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_views_give_what_their_copies_give(view, dtype):
    def make(*shape):
        return torch.randn(shape, device=DEVICE).to(dtype)

    assert_same_bits(view(make))


def run(*command):
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cpu_tensors_need_no_triton_and_load_no_kernel():
    run(
        "-c",
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import torch, shiftmlp\n"
        "shiftmlp.functional.spatial_shift(torch.randn(1, 2, 2, 4))\n"
        "assert not [name for name in sys.modules if name.endswith('triton_kernels')]",
    )


machine_code = pytest.mark.xdist_group("machine code")  # which is compiled once


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """``make kernels`` for one GPU, in a process of its own, without the interpreter."""
    file = tmp_path_factory.mktemp("kernels") / "table.json"
    run("benchmarks/kernels.py", "--only", "triton", "--arch", ARCH, "--json", str(file))
    return json.loads(file.read_text())


@machine_code
def test_every_case_compiles(rows):
    modules = {f"shiftmlp.ops.{row['op']}.triton_kernels" for row in rows}
    cases = [case for name in modules for case in importlib.import_module(name).COMPILE_CASES]
    assert {(row["case"], row["arch"]) for row in rows} == {(case, ARCH) for case in cases}


@machine_code
def test_no_kernel_spills_and_shared_memory_suffices(rows):
    for row in rows:
        told = f"{row['kernel']} {row['case']} {row['arch']}"
        assert row["stack"] == 0 and row["spills"] == 0, told
        assert row["shared"] <= SHARED_LIMIT[row["arch"]], told


@machine_code
def test_s2_moves_vectors_of_16_bytes(rows):
    for row in rows:
        if row["case"].startswith("S2"):
            wide = (".128", "dwordx4")
            assert row["memory"] and all(name.endswith(wide) for name in row["memory"]), row


@machine_code
def test_products_of_channels_run_on_tensor_cores(rows):
    products = {"linear_kernel", "weight_gradient_kernel"}
    found = [row for row in rows if row["kernel"] in products and "fp32" not in row["case"]]
    assert {row["op"] for row in found} >= {"shift_linear", "shift_mlp", "channel_mlp"}
    for row in found:
        assert row["matrix"], row
        if row["arch"] == "sm_90":
            assert all(name.startswith("HGMMA") for name in row["matrix"]), row
            # Only "cycle" moves neighbouring channels apart.
            if not row["case"].startswith("cycle"):
                assert not any(".U16" in name for name in row["memory"]), row


@pytest.fixture
def on_a_gpu(monkeypatch):
    """The state without the interpreter, as far as refusals see it."""
    monkeypatch.setattr(_triton, "INTERPRETED", False)
    _triton._no_gpu.cache_clear()
    yield
    _triton._no_gpu.cache_clear()
    _triton._no_triton.cache_clear()


def test_refusals_on_a_cpu(on_a_gpu, monkeypatch):
    x = torch.randn(1, 2, 2, 4)
    assert OPS["spatial_shift"].refusal("triton", x, Shift.S2.spec) == "x is on cpu, not on a GPU"
    reason = OPS["spatial_shift_backward"].refusal("triton", x, Shift.S2.spec, [True])
    assert reason == "dy is on cpu, not on a GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _triton.why_not() == "there is no GPU"
    with pytest.raises(NotImplementedError, match="triton cannot run spatial_shift: x is on cpu"):
        torch.ops.shiftmlp.spatial_shift(x, Shift.S2.spec, "triton")


def test_refusals_of_what_has_no_path():
    op = OPS["spatial_shift"]
    x = torch.ones(1, 2, 2, 4, device=DEVICE)
    assert op.refusal("triton", x.int(), Shift.S2.spec) == (
        "x must be bfloat16, float16, float32, float64, got torch.int32"
    )
    many = Shift(((0, 1),) * 129)
    assert op.refusal("triton", x, many.spec) == "takes at most 128 steps, got 129"
    wide = x[:, :, :1].expand(1, 2, 2**30, 4)
    assert "an axis of 2^30 or more" in op.refusal("triton", wide, Shift.S2.spec)
    two = SimpleNamespace(names=["x", "weight"])
    refuses = _triton._refuser(two, "unused", "refuses")
    assert refuses(x, x.to("meta")) == f"weight is on meta, x on {x.device}"


@pytest.mark.skipif(DEVICE == "cuda", reason="there is no interpreter here")
def test_auto_passes_the_interpreter_over():
    x = torch.randn(1, 2, 2, 4)
    reasons = OPS["spatial_shift"].explain(x, Shift.S2.spec)
    assert reasons["triton"] == "the interpreter is for tests"
    assert _triton.why_not() is None


@pytest.mark.parametrize("broken", ["absent", "old"])
def test_refusal_without_a_usable_triton(broken, monkeypatch):
    module = None if broken == "absent" else SimpleNamespace(__version__="3.2.0")
    _triton._no_triton.cache_clear()
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "triton", module)
        reason = _triton.why_not()
    _triton._no_triton.cache_clear()
    wanted = {"absent": "triton cannot be imported: ModuleNotFoundError", "old": "at least 3.6"}
    assert wanted[broken] in reason


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_more_than_2_31_pixels():
    x = torch.empty(3, 1, 2**30 - 1, 1, device="cuda", dtype=torch.float16).normal_()
    y = torch.ops.shiftmlp.spatial_shift(x, Shift(((0, 1),)).spec, "triton")
    assert torch.equal(y[:, :, 1:], x[:, :, :-1])
    assert torch.equal(y[:, :, 0], x[:, :, 0])


@pytest.mark.parametrize("name", ["token_mlp", "token_linear", "shift_mlp", "shift_linear"])
def test_auto_leaves_float32_products_to_the_library(name, monkeypatch):
    monkeypatch.setattr(_triton, "INTERPRETED", False)
    sample = next(iter(SAMPLES[name].values()))
    for op in (OPS[name], OPS[f"{name}_backward"]):
        args = SAMPLES[op.name][next(iter(SAMPLES[name]))](randn(torch.float32))
        assert "not yet measured" in op.kernels["triton"][2](*args)
    half = sample(randn(torch.bfloat16))
    assert OPS[name].kernels["triton"][2](*half) is None
