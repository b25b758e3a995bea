"""What the compilers make of the kernels for one GPU; ``make kernels`` has the others."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from machine_code import SHARED_LIMIT  # noqa: E402

ARCH = "sm_90"
PRODUCTS = {
    "linear_kernel", "linear_norm_kernel", "linear_norm_backward_kernel", "weight_gradient_kernel",
    "mix_kernel", "adjoint_kernel", "token_mlp_kernel", "token_mlp_backward_kernel",
}  # fmt: skip
# Two for each of bias, scale and an affine: 128 channels are two bytes for each of 256 threads.
VECTOR_LOADS = 8
pytestmark = pytest.mark.xdist_group("machine code")  # which is compiled once


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """``make kernels`` for one GPU, in a process of its own, without the interpreter."""
    file = tmp_path_factory.mktemp("kernels") / "table.json"
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    options = ["--only", "triton", "--arch", ARCH, "--json", file]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/kernels.py", *options],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


def test_every_case_compiles(rows):
    modules = {f"shiftmlp.ops.{row['op']}.triton_kernels" for row in rows}
    cases = [case for name in modules for case in importlib.import_module(name).COMPILE_CASES]
    assert {(row["case"], row["arch"]) for row in rows} == {(case, ARCH) for case in cases}


def test_no_kernel_spills_and_shared_memory_suffices(rows):
    for row in rows:
        told = f"{row['kernel']} {row['case']} {row['arch']}"
        assert row["stack"] == 0 and row["spills"] == 0, told
        assert row["shared"] <= SHARED_LIMIT[row["arch"]], told
        assert row["resident"] >= 1, told


def test_s2_moves_vectors_of_16_bytes(rows):
    for row in rows:
        if row["op"] == "spatial_shift" and row["case"].startswith("S2"):
            assert row["memory"] and all(name.endswith(".128") for name in row["memory"]), row


def halves(rows):
    """Products in 16 bits, which is all of them but the float32 cases."""
    found = [row for row in rows if row["kernel"] in PRODUCTS and "fp32" not in row["case"]]
    assert {row["kernel"] for row in found} == PRODUCTS
    return found


def test_products_run_on_tensor_cores(rows):
    for row in halves(rows):
        assert row["matrix"] and all(name.startswith("HGMMA") for name in row["matrix"]), row


def test_products_load_no_matrix_two_bytes_at_a_time(rows):
    """Where rows allow more: those of 49 tokens lie at odd addresses, and a "cycle" moves
    neighbouring channels apart."""
    for row in halves(rows):
        if not any(word in row["case"] for word in ("cycle", "S/32", "autocast")):
            assert row["memory"].get("LDG.E.U16", 0) <= VECTOR_LOADS, row
