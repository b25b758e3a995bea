"""The prediction counts what a call launches: operations, bytes, waste and waves by hand."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from shiftmlp.bench.cases import CASES, select  # noqa: E402
from shiftmlp.ops import _triton  # noqa: E402

FILE = Path(__file__).parents[1] / "benchmarks" / "predict.py"
spec = importlib.util.spec_from_file_location("predict", FILE)
predict = sys.modules["predict"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(predict)

# On a GPU the launchers ask for its architecture, and tiles are not those of an H200.
pytestmark = pytest.mark.skipif(not _triton.INTERPRETED, reason="tiles of the interpreter's sm_90")


# Operators of PyTorch that launch nothing.
FREE = (
    "empty.memory_format", "empty_like", "new_empty", "view", "unbind.int", "split.Tensor",
    "select.int", "slice.Tensor", "transpose.int", "unsqueeze", "promote_types",
)  # fmt: skip


def fit(*launch, **constants) -> int:
    """In place of a compiler: one program of the large tiles on a multiprocessor."""
    return 1


def launches(case, batch, direction="fwd"):
    return predict.record(predict.call_of(case, batch, direction), fit)


def test_mixer_b16_by_hand():
    # 196 tokens are 128 + 64 + 16 columns, 768 channels six tiles of 128, 384 hidden no waste.
    case = select(["token_mlp"])[0]
    statistics, fused = launches(case, 128)
    assert fused.programs == 128 * 6 and fused.waves == pytest.approx(768 / 132)
    assert fused.useful == 128 * 768 * 2 * 384 * 2 * 196 == case.flops(128, "fwd")
    assert fused.executed * 196 == fused.useful * 208
    assert fused.gelus == 128 * 768 * 384
    x, rows = 128 * 196 * 768, 128 * 196
    weights = 2 * 196 * 384 + 384 + 196 + 2 * 768
    # x, which is the residual too, and y; then mean and rstd in float32.
    assert fused.nbytes == 2 * (2 * x + weights) + 2 * 4 * rows
    assert statistics.nbytes == 2 * x + 2 * 4 * rows
    assert statistics.executed == statistics.gelus == 0

    # Six waves of programs, none with another beside it: GELU comes on top of the products.
    products = 6 * 132 * 2 * 128 * 384 * 2 * 208 / 790e12
    gelu = 6 * 128 * 384 * 19 / 128 / 1.7e9
    assert fused.times_us()[0] == pytest.approx(1e6 * (products + gelu) + 1)
    assert statistics.times_us()[0] == pytest.approx(1e6 * statistics.nbytes / 4.3e12 + 1)


def test_waste_of_the_other_products_by_hand():
    # Columns 128 + 64 + 16 of 196 again, and seven steps of 32 tokens.
    [mix] = launches(select(["token_linear"])[0], 2)
    assert mix.useful == 2 * 2 * 384 * 196**2 and mix.executed == 2 * 2 * 384 * 208 * 224
    # Tiles of 128 x 128 and steps of 64: two of them down 196 pixels, or four steps.
    case = select(["shift_linear"])[0]
    [linear] = launches(case, 1)
    assert linear.useful == 2 * 196 * 384**2 and linear.executed == 2 * 256 * 384**2
    products = [one for one in launches(case, 1, "bwd") if one.executed]
    assert [(one.useful, one.executed) for one in products] == [
        (linear.useful, linear.executed)
    ] * 2
    # 196 tokens in two tiles of 128 one way, in 208 columns the other.
    weights = [
        one for one in launches(select(["token_gate"])[0], 2, "bwd") if "weight" in one.kernel
    ]
    assert [one.executed for one in weights] == [2 * 2 * 768 * 256 * 208]


def test_one_program_draws_one_share_of_the_memory():
    one = predict.Launch("moves", 1, 0, 0, 0, 4_300_000, 8)
    assert one.times_us()[0] == pytest.approx(132 + 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.model}")
def test_work_is_no_less_than_the_floor_and_time_grows_with_the_batch(case):
    found = launches(case, 4)
    assert sum(one.useful for one in found) == case.flops(4, "fwd")
    assert all(one.executed >= one.useful for one in found)
    # Small backwards are left out: more images there mean more programs, which even out better.
    for direction, batches in (("fwd", [1, 2, 4, 8, 64, 127, 128, 129]), ("bwd", [64, 128, 256])):
        rows = [predict.predict(case, batch, direction, fit) for batch in batches]
        times = [row["predicted_us"] for row in rows]
        assert times == sorted(times)
        for row in rows:
            assert row["moved"] >= 1 and row["apart_us"] >= row["predicted_us"] > row["floor_us"]


def test_nothing_is_computed_between_the_launches():
    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        names = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(func.name())
            return func(*args, **(kwargs or {}))

    with Seen():
        for case in CASES:
            for direction in ("fwd", "bwd"):
                launches(case, 2, direction)
    assert Seen.names <= {f"aten::{name}" for name in FREE}
