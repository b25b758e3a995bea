"""Host time of the ops beside eager PyTorch on this CPU; ``python -m shiftmlp bench`` does GPUs."""

import pytest
import torch

from shiftmlp.bench.baselines import EAGER, Contender, ours
from shiftmlp.bench.cases import select
from shiftmlp.bench.runner import prepare

BATCH = 1


@pytest.mark.parametrize("contender", ["eager", "auto"])
@pytest.mark.parametrize("direction", ["fwd", "fwd_bwd"])
@pytest.mark.parametrize("case", select(first_only=True), ids=lambda case: case.op)
def test_op(case, direction, contender, benchmark):
    function = EAGER[case.op] if contender == "eager" else ours(case.op, contender)
    inputs = case.inputs(BATCH, torch.float32, "cpu")
    call = prepare(Contender(contender, function), inputs, direction)
    benchmark.group = f"{case.op} {case.name} {direction}"
    benchmark.extra_info["flops"] = case.flops(BATCH, direction)
    benchmark.extra_info["bytes"] = case.bytes(BATCH, direction, itemsize=4)
    benchmark.pedantic(call, rounds=20, warmup_rounds=2)
