"""What nvcc made of the CUDA kernels, for every GPU that the library has code for."""

import json
import shutil

import cuda_code
import emulator
import pytest

from shiftmlp import _native

pytestmark = [
    pytest.mark.skipif(_native.why_not("cuda") is not None, reason=str(_native.why_not("cuda"))),
    pytest.mark.skipif(not emulator.NVCC.exists(), reason="nvcc is not installed"),
    pytest.mark.skipif(not shutil.which("c++filt"), reason="c++filt is not installed"),
    pytest.mark.xdist_group("machine code of the library"),  # which is read once
]


HMMA = {
    "__half": "HMMA.16816.F32",
    "__nv_bfloat16": "HMMA.16816.F32.BF16",
    "float": "HMMA.1688.F32.TF32",
}


@pytest.fixture(scope="module")
def kernels():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_HOME", str(emulator.NVCC.parents[1]))
        return cuda_code.read_library()


def each(kernels):
    for arch, found in kernels.items():
        for name, code in found.items():
            yield f"{arch} {name}", arch, code


def test_every_architecture_has_every_kernel(kernels):
    """Those for sm_90a besides."""
    assert {arch.removeprefix("sm_") for arch in kernels} == {
        arch.removesuffix("+PTX").replace(".", "") for arch in _native.cuda_archs()
    }
    portable = set(kernels["sm_80"])
    for arch, found in kernels.items():
        others = set(found) - portable
        assert portable <= set(found), arch
        assert bool(others) == (arch == "sm_90a"), (arch, others)


def test_no_kernel_spills(kernels):
    for told, _, code in each(kernels):
        assert code.stack == 0 and code.spills == 0, told


def test_registers_leave_room_for_the_blocks_that_are_wanted(kernels):
    """Two of 256 threads on a multiprocessor; one with warpgroups that deal registers."""
    for told, _, code in each(kernels):
        if "_sm90_kernel" in told:
            assert code.registers == 65536 // code.threads // 8 * 8, (told, code.registers)
            assert code.instructions["USETMAXREG.TRY_ALLOC.CTAPOOL"], told
        else:
            assert code.registers * code.threads * 2 <= 65536, (told, code.registers)


def test_products_run_on_tensor_cores_and_copy_by_themselves(kernels):
    """On those of sm_90a, whose operands TMA brings, where a kernel is written for them."""
    for told, _, code in each(kernels):
        kinds = {name.partition(".")[0] for name in code.matrix}
        if "_sm90_kernel" in told:
            assert kinds == {"HGMMA"}, told
            for copy in ("UTMALDG", "UTMASTG"):
                assert any(name.startswith(f"{copy}.3D") for name in code.memory), told
        elif "product_kernel" in told:
            dtype = told.partition("<")[2].partition(",")[0]
            assert set(code.matrix) == {HMMA[dtype]}, told
            assert code.memory["LDGSTS.E.BYPASS.128"] and code.memory["STG.E.128"], told
        else:
            assert not kinds, told


def test_kernels_are_as_long_as_they_were(kernels):
    """Within a fifth: more tells of code that nobody looked at. tests/cuda_code.py renews this."""
    record = json.loads(cuda_code.RECORD.read_text())
    if cuda_code.compiler() != record["nvcc"]:
        pytest.skip(f"recorded with nvcc {record['nvcc']}")
    recorded = {arch: set(counts) for arch, counts in record["instructions"].items()}
    assert recorded == {arch: set(found) for arch, found in kernels.items()}
    for told, arch, code in each(kernels):
        was, now = record["instructions"][arch][code.kernel], code.instructions.total()
        assert abs(now - was) <= 0.2 * was, f"{told}: {was} instructions then, {now} now"
