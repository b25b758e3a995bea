"""A wrong or slow kernel does not get past accelerate; verify tells models apart."""

import copy

import pytest
import torch
from small_models import (
    every_model,
    images,
    mixer,
    mlp_mixer,
    ops_called,
    reference,
)
from torch import nn

import shiftmlp
from shiftmlp.accelerate import _check, _plan
from shiftmlp.ops import OPS
from shiftmlp.testing import assert_same_bits


@pytest.fixture
def planted(monkeypatch):
    """Put a kernel into an op's table as the "cpu" one."""

    def plant(op: str, kernel, refuses=lambda *inputs: None) -> None:
        entry = (kernel, refuses, lambda *inputs: None)
        monkeypatch.setitem(OPS[op].kernels, "cpu", entry)

    return plant


def plant_copies(plant, change, only: str) -> None:
    """The reference as "cpu" kernels of both ops, with a changed result where ``only`` says."""
    for name in ("token_mlp", "token_mlp_backward", "channel_mlp", "channel_mlp_backward"):
        kernel = OPS[name].kernels["reference"][0]
        plant(name, (lambda k: lambda *args: change(k(*args)))(kernel) if name == only else kernel)


def off_in_one_element(result):
    result = result[0] if isinstance(result, list) else result
    result.view(-1)[-1] += 1e-2 * result.abs().max()
    return result


def off_in_dw2(grads):
    return [*grads[:5], grads[5] * 1.001, *grads[6:]]


@pytest.mark.parametrize("example", [None, images()], ids=["random", "real"])
@pytest.mark.parametrize(
    ("only", "change"), [("channel_mlp", off_in_one_element), ("token_mlp_backward", off_in_dw2)]
)
def test_a_wrong_kernel_is_caught(planted, only, change, example):
    model = mixer()
    plant_copies(planted, change, only)
    shiftmlp.accelerate(model, example_input=example, min_gain=0)
    report = shiftmlp.explain(model)
    assert [row.reason for row in report.rows] == ["VERIFY_FAILED"] * 2
    assert all(row.error > row.allowed for row in report.rows)
    assert type(model.blocks[0]) is mlp_mixer.MixerBlock
    if "backward" in only:
        assert report.rows[0].worst == "gradient of mlp_tokens.fc2.weight"


def test_a_right_kernel_is_taken_and_named(planted):
    model = mixer()
    plant_copies(planted, lambda result: result, "token_mlp")
    row = shiftmlp.explain(model).rows[0]
    assert (row.action, row.backend, row.reason) == ("replaced", "cpu", None)
    rows = shiftmlp.explain(shiftmlp.accelerate(model)).rows
    assert [(r.backend, r.reason) for r in rows] == [("cpu", None)] * 2
    assert set(rows[0].kernels) == {
        "token_mlp", "channel_mlp", "token_mlp_backward", "channel_mlp_backward"
    }  # fmt: skip


def test_a_kernel_that_raises_keeps_the_block(planted):
    def breaks(result):
        raise ArithmeticError("broken")

    model = mixer()
    plant_copies(planted, breaks, "channel_mlp")
    shiftmlp.accelerate(model)
    rows = shiftmlp.explain(model).rows
    assert [r.reason for r in rows] == ["VERIFY_FAILED"] * 2 and "broken" in rows[0].sentence


def test_a_block_that_says_nothing_is_not_verified():
    model = mixer()
    for parameter in model.blocks[0].parameters():
        nn.init.zeros_(parameter)
    reference(model)
    rows = shiftmlp.explain(model).rows
    assert [r.reason for r in rows] == ["VERIFY_FAILED", None] and "proves nothing" in rows[
        0
    ].sentence


def test_slow_kernels_lose_their_place(planted, monkeypatch):
    model = mixer()
    plant_copies(planted, lambda result: result, "token_mlp")
    monkeypatch.setattr(_plan, "in_turns", lambda *args: [(1.0, 2.0)] * 5)
    shiftmlp.accelerate(model, example_input=images())
    rows = shiftmlp.explain(model).rows
    assert [(r.action, r.reason, r.gain) for r in rows] == [("kept", "NOT_FASTER", 0.5)] * 2
    shiftmlp.accelerate(model, example_input=images(), min_gain=0)
    assert len(shiftmlp.explain(model).replaced) == 2
    monkeypatch.setattr(_plan, "in_turns", lambda *args: [(2.0, 1.0)] * 3 + [(1.0, 2.0)] * 2)
    shiftmlp.accelerate(model, example_input=images())
    assert [row.gain for row in shiftmlp.explain(model).replaced] == [2.0, 2.0]


def test_a_slow_moment_is_not_the_last_word(planted, monkeypatch):
    model = mixer()
    plant_copies(planted, lambda result: result, "token_mlp")
    looks = iter([[(1.0, 2.0)] * 5, [(2.0, 1.0)] * 15])
    monkeypatch.setattr(_plan, "in_turns", lambda *args: next(looks))
    shiftmlp.accelerate(model, example_input=images())
    assert [row.gain for row in shiftmlp.explain(model).replaced] == [2.0, 2.0]


@pytest.fixture
def bare(monkeypatch):
    """No kernels but the references."""
    for op in OPS.values():
        for backend in [name for name in op.kernels if name != "reference"]:
            monkeypatch.delitem(op.kernels, backend)


def test_without_kernels_auto_never_loses(bare):
    model = mixer()
    y = model(images())
    rows = shiftmlp.explain(shiftmlp.accelerate(model)).rows
    assert [(r.action, r.backend, r.reason) for r in rows] == [
        ("replaced", "original", "NOT_FASTER")
    ] * 2
    assert "token_mlp" in rows[0].sentence and "cuda: has no such kernel" in rows[0].sentence
    assert rows[0].error is not None
    assert ops_called(model) == set()
    assert_same_bits(model(images()), y)
    with shiftmlp.use_backend("reference"):
        assert ops_called(model) == {"token_mlp", "channel_mlp"}
    shiftmlp.accelerate(model, min_gain=1.1)
    assert type(model.blocks[0]) is mlp_mixer.MixerBlock


def test_a_named_backend_that_refuses(bare):
    model = shiftmlp.accelerate(mixer(), backend="triton")
    rows = shiftmlp.explain(model).rows
    assert [r.reason for r in rows] == ["BACKEND_REFUSES"] * 2
    assert rows[0].sentence == "triton cannot run token_mlp: has no such kernel"


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_verify(make, dtype):
    model = reference(make().to(dtype), example_input=images().to(dtype), verify="full")
    assert len(shiftmlp.explain(model).replaced) == 2


def test_dropout_in_force_does_not_spoil_the_check():
    model = mixer(proj_drop_rate=0.5)
    rows = shiftmlp.explain(reference(copy.deepcopy(model))).rows
    # With dropout drawn, PyTorch's own error would be huge, and anything within it.
    assert shiftmlp.explain(reference(model.train())).rows == rows


def test_verify_tells_models_apart():
    model, other = mixer(), mixer()
    other.load_state_dict(model.state_dict())
    same = shiftmlp.verify(model, other, images())
    assert same and "agree" in str(same) and same.to_dict()["holds"]
    with torch.no_grad():
        other.blocks[1].mlp_tokens.fc1.bias[0] += 1e-3
    differ = shiftmlp.verify(model, other, images())
    assert not differ and "DIFFER" in str(differ)
    assert not shiftmlp.verify(model, other, images(), backward=False)
    nn.init.zeros_(model.head.weight)
    with pytest.raises(ValueError, match="constant"):
        shiftmlp.verify(model, model, images())
    with pytest.raises(TypeError, match="b must be"):
        shiftmlp.verify(model, None, images())


def test_small_gradients_are_judged_together_but_not_excused():
    """Alone, 4 elements decide by chance; beside a larger error of PyTorch's they do not."""
    exact = {"g": torch.ones(20, dtype=torch.double), "b": torch.full((4,), 100.0).double()}
    torchs = {name: (t * 1.001).float() for name, t in exact.items()}
    ours = {"g": torchs["g"], "b": torchs["b"].clone()}
    ours["b"][2] *= 1.0015
    assert _check.compare(ours, torchs, exact).holds
    ours["b"][2] *= 1.01
    agreement = _check.compare(ours, torchs, exact)
    assert not agreement.holds and agreement.worst.startswith("b")
    zero = {"b": torch.zeros(4).double(), "c": exact["b"]}
    noise = {"b": torch.full((4,), 1e-6), "c": torchs["b"]}
    assert _check.compare(noise | {"b": 4 * noise["b"]}, noise, zero).holds
    assert not _check.compare(noise | {"b": noise["b"] + 1}, noise, zero).holds


def test_gradients_that_one_side_lacks_are_seen():
    one = {"output": torch.ones(3)}
    agreement = _check.compare(one, one | {"g": torch.ones(1)}, one | {"g": torch.ones(1)})
    assert agreement.worst == "g" and not agreement.holds
