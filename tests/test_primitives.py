"""Each primitive of csrc/cuda by itself, in the emulator, against its meaning told in torch."""

import ctypes
import functools
import os
import re
import subprocess
from pathlib import Path

import emulator
import pytest
import torch

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))


NVCC = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvcc")


@pytest.fixture(scope="module")
def conform():
    library = emulator.build()
    return functools.partial(emulator.conform, library)


def fragments(matrices, transpose):
    """What ldmatrix gives: lane 4g + q has, of each matrix, columns 2q and 2q + 1 of row g."""
    if transpose:
        matrices = matrices.mT
    return matrices.reshape(-1, 32, 2).permute(1, 0, 2).contiguous()


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_and_stmatrix(count, transpose, conform):
    rows = torch.arange(32 * 8, dtype=torch.int16)
    matrices = rows.view(-1, 8, 8)[:count]
    loaded = conform("ldmatrix", rows.new_empty(32, count, 2), rows, None, count, transpose)
    assert torch.equal(loaded, fragments(matrices, transpose))
    stored = conform("stmatrix", rows.new_empty(count, 8, 8), loaded, None, count, transpose)
    assert torch.equal(stored, matrices)


def test_mma_tf32_rounds_its_operands_to_ten_bits(conform):
    a, b = torch.randn(16, 8), torch.randn(8, 8)
    a[0, 0], b[0] = 1 + 2**-11, 1  # half a step: away from zero

    def rounded(t):
        fraction, exponent = torch.frexp(t.double())
        steps = fraction * 2**11
        return torch.ldexp(steps.sign() * (steps.abs() + 0.5).floor() / 2**11, exponent)

    wanted = (rounded(a) @ rounded(b)).float()
    assert torch.equal(conform("mma_tf32", torch.empty(16, 8), a, b), wanted)


def test_cp_async_and_shuffles(conform):
    a = torch.arange(1, 33, dtype=torch.int32)
    lanes = torch.arange(32)
    wanted = torch.stack([a.where(lanes % 3 != 0, 0), a[5].expand(32), a[lanes ^ 9]])
    assert torch.equal(conform("warp", a.new_empty(3, 32), a), wanted)


PLACES = [(0, 0), (12, 2), (-4, -1), (16, 4), (20, 0), (3, 0, 1, 1), (0, -1, 3, 2), (-8, 0, 0, 0)]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_tma_outside_of_the_tensor_reads_zeros_and_writes_nothing(place, conform):
    sizes, box = ((6, 20), (4, 8)) if len(place) == 2 else ((3, 4, 5, 8), (2, 2, 3, 8))
    a, b = torch.randn(sizes), torch.randn(sizes)
    wide = torch.zeros([size + 64 for size in sizes])
    wide[tuple(slice(32, 32 + size) for size in sizes)] = a
    # TMA counts dimensions from the dense one.
    at = [slice(32 + p, 32 + p + n) for p, n in zip(reversed(place), box, strict=True)]
    inside = [slice(max(p, 0), max(p + n, 0)) for p, n in zip(reversed(place), box, strict=True)]
    wanted = b.clone()
    wanted[tuple(inside)] = a[tuple(inside)]
    coordinates = (ctypes.c_int * 4)(*place)
    loaded = conform("tma", torch.empty(box), a, b, len(place), coordinates)
    assert torch.equal(loaded, wide[tuple(at)])
    assert torch.equal(b, wanted)


@pytest.mark.parametrize("k_major", [True, False])
@pytest.mark.parametrize("n", [8, 24, 104, 208, 256])
def test_wgmma(n, k_major, conform):
    a, b = (torch.randn(rows, 16).bfloat16() for rows in (64, n))
    wanted = (a.double() @ b.double().T).float()
    assert torch.equal(conform("wgmma", torch.empty(64, n), a, b, n, k_major), wanted)


@pytest.mark.parametrize("seed", range(10))
def test_warpgroups_take_turns_at_named_barriers(seed, conform):
    out = torch.empty(8, dtype=torch.int32)
    conform("turns", out, None, None, 4, seed=seed)
    assert out.tolist() == [0, 1] * 4


@pytest.mark.skipif(not NVCC.exists(), reason="nvcc is not installed")
@pytest.mark.parametrize(
    "source", sorted(emulator.CSRC.glob("emulator/*.cu")), ids=lambda p: p.stem
)
def test_compiles_for_hopper(source, tmp_path):
    """ptxas would serialize products whose registers are touched while they are under way."""
    command = [NVCC, "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v"]
    done = subprocess.run(
        [*command, "-c", source, "-o", tmp_path / "kernel.o"], capture_output=True, text=True
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0 and not re.search("warning|serializ", told), told
    assert set(re.findall(r"(\d+) bytes spill", told)) == {"0"}, told
