"""The compiled libraries: that they build, load or say why not, and touch only their own memory."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shiftmlp import Shift, _native
from shiftmlp.ops import OPS
from shiftmlp.ops.spatial_shift import native

ROOT = Path(__file__).parent.parent
LIBRARIES = [Path(_native.__file__).with_name(f"_C_{name}.so") for name in ("cpu", "cuda")]

op = OPS["spatial_shift"]
built = pytest.mark.skipif(
    not all(path.exists() for path in LIBRARIES), reason="the native libraries are not built"
)


def cpu(x, shift=Shift.S2):
    return op.kernels["cpu"][0](x, shift.spec)


def reference(x, shift=Shift.S2):
    return op.kernels["reference"][0](x, shift.spec)


def build(tmp_path, *command, **env):
    """Runs the build, or a command of it, in a copy of the sources; its output."""
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").touch()
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copytree(
        ROOT / "shiftmlp",
        tmp_path / "shiftmlp",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    command = [sys.executable, "setup.py", *(command or ("build_ext", "--inplace"))]
    # The switches of the build that is under test here, not of the one that it runs in.
    env = {k: v for k, v in os.environ.items() if not k.startswith("SHIFTMLP_")} | env
    return subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )


@built
@pytest.mark.parametrize("path", LIBRARIES, ids=lambda path: path.name)
def test_library_uses_only_the_stable_abi(path):
    if not shutil.which("nm"):
        pytest.skip("nm is not installed")
    listing = subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout
    symbols = [line.split()[-1] for line in listing.splitlines()]
    assert "torch_call_dispatcher" in symbols
    assert [s for s in symbols if re.match(r"_ZN?K?\d*(c10|at|torch|8shiftmlp)|_?Py", s)] == []


@built
def test_cuda_library_serves_its_schema_and_refuses_other_tensors():
    assert _native.why_not("cuda") is None
    schema = str(torch.ops.shiftmlp_cuda.spatial_shift.default._schema)
    assert schema == "shiftmlp_cuda::spatial_shift(Tensor x, str shift) -> Tensor"
    with pytest.raises(NotImplementedError, match="'SparseCPU' backend"):
        torch.ops.shiftmlp_cuda.spatial_shift(torch.zeros(1, 2, 2, 4).to_sparse(), Shift.S2.spec)
    assert op.refusal("cuda", torch.zeros(1, 2, 2, 4), Shift.S2.spec) == (
        "x must be on cuda, got cpu"
    )


@pytest.mark.parametrize(
    "arch, found, runs",
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 9), True),
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("9.0a", (9, 0), True),
        ("9.0a", (10, 0), False),
        ("9.0a+PTX", (10, 0), False),
        ("12.0+PTX", (12, 1), True),
        ("9.0+PTX", (12, 0), True),
        ("12.0+PTX", (10, 0), False),
    ],
)
def test_which_devices_an_image_serves(arch, found, runs):
    assert _native._runs_on(arch, found) is runs


@built
def test_device_without_an_image_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(_native, "cuda_archs", lambda: ("8.0", "9.0a"))
    reason = _native.lacks_image.__wrapped__(torch.device("cuda", 0))
    assert reason == "it has code for 8.0, 9.0a, the device needs 7.5"


def test_missing_library_has_a_sentence(tmp_path):
    reason = _native.load(tmp_path / "_C_cpu.so")
    assert reason.startswith("_C_cpu.so was not built with this package")


@built
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_truncated_library_has_a_sentence(part, tmp_path):
    path = tmp_path / "_C_cpu.so"
    whole = LIBRARIES[0].read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    assert re.search("is cut short|is not a shared library", _native.load(path))


def test_library_for_another_torch_names_both(tmp_path):
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    source, path = tmp_path / "other.c", tmp_path / "_C_cpu.so"
    source.write_text("void torch_of_tomorrow(void); void (*use)(void) = torch_of_tomorrow;")
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", path], check=True)
    reason = _native.load(path)
    assert "torch_of_tomorrow" in reason and f"this is torch {torch.__version__}" in reason


def test_library_of_another_version_has_a_sentence(tmp_path):
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    source, path = tmp_path / "older.c", tmp_path / "_C_cuda.so"
    source.write_text("int shiftmlp_cuda_version = 0;")
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", path], check=True)
    reason = _native.load(path)
    assert reason.startswith("_C_cuda.so was built with another version of this package")


@pytest.mark.parametrize(
    "env, says",
    [
        ({"SHIFTMLP_BUILD": "0"}, "SHIFTMLP_BUILD=0"),
        ({"CXX": "/nowhere/c++"}, "no compiler /nowhere/c++"),
        ({"CXX": "false"}, "its compilation failed, see above"),
    ],
)
def test_build_without_its_tools_succeeds_and_says_so(env, says, tmp_path):
    done = build(tmp_path, **env)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("shiftmlp:")]
    names = ["_host", "_C_cpu"] + ["_emulator"] * (platform.machine() == "x86_64")
    assert len(lines) == 1 and all(f"without {name}: {says}" in lines[0] for name in names)
    assert not list(tmp_path.glob("shiftmlp/*.so"))


@pytest.mark.parametrize("switch, name", [("BUILD", "_host"), ("CUDA", "_C_cuda")])
def test_demanded_build_fails_without_its_tools(switch, name, tmp_path):
    done = build(tmp_path, CXX="/nowhere/c++", **{f"SHIFTMLP_{switch}": "1"})
    assert done.returncode != 0
    assert f"{name} is demanded by SHIFTMLP_{switch}=1: no compiler /nowhere/c++" in done.stderr


def test_what_tests_need_is_built_in_a_checkout_only(tmp_path):
    done = build(tmp_path, "build", SHIFTMLP_BUILD="0")
    assert "without _host" in done.stdout and "_emulator" not in done.stdout


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_a_bit(dtype):
    x = torch.randn(16, 32, 32, 64).to(dtype)  # several tasks of half a megabyte
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            backward = op.backward.kernels["cpu"][0](x, Shift.S2.spec, [True])
            results.append((cpu(x), *backward))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))
    assert torch.equal(results[0][0], reference(x))


@built
def test_strides_beyond_32_bits(tmp_path):
    # A sparse file: three pixels 2**32 bytes apart, nothing between them takes space.
    stride = 2**30
    elements = 2 * stride + 8
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(4 * elements)
    far = torch.from_file(str(path), shared=True, size=elements, dtype=torch.float32)
    for shape, strides in (
        ((1, 3, 1, 8), (8, stride, 8, 1)),
        ((1, 1, 3, 8), (8, 8, stride, 1)),
        ((3, 1, 1, 8), (stride, 8, 8, 1)),
    ):
        x = far.as_strided(shape, strides)
        x.copy_(torch.arange(24.0).view(shape))
        for shift in (Shift.S2, Shift(((1, 1),), "wrap")):
            assert torch.equal(cpu(x, shift), reference(x.contiguous(), shift))
            dx = op.backward.kernels["cpu"][0](x, shift.spec, [True])[0]
            assert torch.equal(
                dx, op.backward.kernels["reference"][0](x.contiguous(), shift.spec, [True])[0]
            )


@built
@pytest.mark.parametrize("shift", [Shift.S2, Shift(((0, 0),))], ids=["S2", "identity"])
def test_input_is_neither_changed_nor_shared(shift):
    x = torch.randn(2, 3, 5, 8)
    before = x.clone()
    y = cpu(x, shift)
    (dx,) = op.backward.kernels["cpu"][0](x, shift.spec, [True])
    y.fill_(0), dx.fill_(0)
    assert torch.equal(x, before)


@built
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_conjugate_views_are_resolved(dtype):
    x = torch.randn(1, 3, 3, 4, dtype=dtype)
    moved = torch.ops.shiftmlp.spatial_shift(x.conj(), Shift.S2.spec, "cpu")
    assert torch.equal(moved.resolve_conj(), reference(x.conj().resolve_conj()))


@built
@pytest.mark.parametrize(
    "spec",
    ["", "keep", "keep floor", "keep floor 1", "keep floor 1,", "keep floor 1,x", "big floor 1,0"]
    + [
        f"keep floor {move}"
        for move in ("1,0,0", "-2147483648,0", "99999999999,0", "1;0", "1,0  1,0")
    ]
    + ["keep floor" + " 1,0" * (native.MAX_STEPS + 1)],
)
def test_malformed_spec_is_refused_below(spec):
    with pytest.raises(ValueError, match="not the spec of a Shift"):
        torch.ops.shiftmlp_cpu.spatial_shift(torch.zeros(1, 2, 2, 4), spec)


def test_too_many_steps_are_refused_by_name():
    shift = Shift(((1, 0),) * (native.MAX_STEPS + 1))
    if reason := _native.why_not("cpu"):
        pytest.skip(reason)
    assert (
        op.refusal("cpu", torch.zeros(1, 2, 2, 4), shift.spec) == "takes at most 64 steps, got 65"
    )
