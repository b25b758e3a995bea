"""Wrong input: the error names the argument, what was wanted and what came; the next call works."""

import pytest
import torch
from torch import Tensor

from shiftmlp import Affine, LayerNorm, Shift
from shiftmlp import functional as SF

B, H, W, S, C, D, O = 2, 3, 4, 5, 6, 7, 8  # noqa: E741


def t(*shape, **kw):
    return torch.zeros(shape, **kw)


GOOD = {
    "spatial_shift": {"x": t(B, H, W, C)},
    "shift_linear": {"x": t(B, H, W, C), "weight": t(O, C), "bias": t(O)},
    "shift_mlp": {"x": t(B, H, W, C), "w1": t(D, C), "b1": t(D), "w2": t(O, D), "b2": t(O)},
    "token_linear": {"x": t(B, S, C), "weight": t(O, S), "bias": t(O)},
    "token_mlp": {"x": t(B, S, C), "w1": t(D, S), "b1": t(D), "w2": t(O, D), "b2": t(O)},
    "token_gate": {"u": t(B, O, C), "v": t(B, S, C), "weight": t(O, S), "bias": t(O)},
    "channel_mlp": {"x": t(B, C), "w1": t(D, C), "b1": t(D), "w2": t(O, D), "b2": t(O)},
}
SHIFTING = ("spatial_shift", "shift_linear", "shift_mlp")
MLPS = ("shift_mlp", "token_mlp", "channel_mlp")
NORMED = ("shift_mlp", "token_linear", "token_mlp", "token_gate", "channel_mlp")
POST_NORMED = ("shift_mlp", "channel_mlp")
SCALED = ("shift_linear", "shift_mlp", "token_linear", "token_mlp", "channel_mlp")


def cases(name: str) -> list[tuple[dict, type, str]]:
    """(changed arguments, error, what its message says)."""
    good = GOOD[name]
    data = [key for key in good if key in ("x", "u", "v")]
    found = []
    for key in data:
        x = good[key]
        found += [
            ({key: None}, TypeError, f"{key} must be a Tensor, got NoneType"),
            ({key: [1.0]}, TypeError, f"{key} must be a Tensor, got list"),
            ({key: x.long()}, TypeError, f"{key} must be floating point .* got torch.int64"),
            ({key: x.to(torch.uint8)}, TypeError, f"{key} must be .* got torch.uint8"),
            ({key: x.bool()}, TypeError, f"{key} must be floating point .* got torch.bool"),
            ({key: x.to(torch.complex64)}, TypeError, f"{key} must be .* got torch.complex64"),
            ({key: x.to_sparse()}, TypeError, f"{key} must be a dense .* got torch.sparse_coo"),
            ({key: t()}, ValueError, rf"{key} must be \(\.\.\., .*C\), got \(\)"),
        ]
    if name in SHIFTING:
        found += [
            ({"x": t(W, C)}, ValueError, r"x must be \(\.\.\., H, W, C\), got \(4, 6\)"),
            ({"x": t(C)}, ValueError, r"x must be \(\.\.\., H, W, C\), got \(6,\)"),
            ({"shift": "s2"}, TypeError, "shift must be a shiftmlp.Shift, got str"),
            ({"shift": None}, TypeError, "shift must be a shiftmlp.Shift, got NoneType"),
            ({"shift": ((1, 0),)}, TypeError, "shift must be a shiftmlp.Shift, got tuple"),
            ({"shift": 1}, TypeError, "shift must be a shiftmlp.Shift, got int"),
        ]
    if name.startswith("token"):
        found += [({data[-1]: t(C)}, ValueError, r"must be \(\.\.\., S, C\), got \(6,\)")]
    for key in [key for key in good if key.startswith("w")]:
        weight = good[key]
        rows, columns = weight.shape
        found += [
            ({key: None}, TypeError, f"{key} must be a Tensor, got NoneType"),
            ({key: 1.0}, TypeError, f"{key} must be a Tensor, got float"),
            (
                {key: t(rows, columns + 1)},
                ValueError,
                rf"{key} must be \(\w+, {columns}\), got \({rows}, {columns + 1}\)",
            ),
            ({key: t(rows)}, ValueError, rf"{key} must be \(\w+, {columns}\), got \({rows},\)"),
            ({key: t(1, rows, columns)}, ValueError, rf"{key} must be \(\w+, {columns}\), got \(1"),
            (
                {key: weight.double()},
                TypeError,
                f"{key} must be torch.float32 like the input, got torch.float64",
            ),
            ({key: weight.long()}, TypeError, f"{key} must be torch.float32 .* got torch.int64"),
            (
                {key: t(rows, columns, device="meta")},
                ValueError,
                f"{key} must be on cpu like the input, got meta",
            ),
        ]
    for key in [key for key in good if key.startswith("b")]:
        (size,) = good[key].shape
        found += [
            ({key: 0}, TypeError, f"{key} must be a Tensor, got int"),
            ({key: t(size + 1)}, ValueError, rf"{key} must be \({size},\), got \({size + 1},\)"),
            ({key: t(size, 1)}, ValueError, rf"{key} must be \({size},\), got \({size}, 1\)"),
            ({key: t(size).half()}, TypeError, f"{key} must be torch.float32 .* got torch.float16"),
            ({key: t(size, device="meta")}, ValueError, f"{key} must be on cpu .* got meta"),
        ]
    for key, width in [("norm", C)] * (name in NORMED) + [("post_norm", O)] * (name in POST_NORMED):
        found += [
            ({key: "layer"}, TypeError, f"{key} must be shiftmlp.LayerNorm, .* got str"),
            ({key: torch.nn.LayerNorm(width)}, TypeError, f"{key} must be .* got LayerNorm"),
            ({key: (t(width), t(width))}, TypeError, f"{key} must be .* got tuple"),
            (
                {key: LayerNorm(t(width + 1))},
                ValueError,
                rf"{key}.weight must be \({width},\), got \({width + 1},\)",
            ),
            ({key: LayerNorm(t(width), t(1))}, ValueError, f"{key}.bias must be"),
            ({key: LayerNorm(t(width), eps=-1.0)}, ValueError, f"{key}.eps must be .* got -1.0"),
            ({key: LayerNorm(t(width), eps="1")}, ValueError, f"{key}.eps must be .* got '1'"),
            ({key: Affine(None)}, TypeError, f"{key}.alpha must be a Tensor, got None"),
            ({key: Affine(t(width), t(2))}, ValueError, f"{key}.beta must be"),
            ({key: Affine(t(width).double())}, TypeError, f"{key}.alpha must be torch.float32"),
        ]
    if name in SCALED:
        found += [
            ({"scale": 2.0}, TypeError, "scale must be a Tensor, got float"),
            ({"scale": t(3)}, ValueError, r"scale must be \(\d,\), got \(3,\)"),
            ({"scale": t()}, ValueError, r"scale must be \(\d,\), got \(\)"),
            ({"residual": t(C)}, ValueError, r"residual must be \(.*\), got \(6,\)"),
            ({"residual": t(B, 1, 1, 1, C)}, ValueError, "residual must be"),
            ({"residual": True}, TypeError, "residual must be a Tensor, got bool"),
        ]
    if name == "shift_linear" or name in MLPS:
        found += [
            ({"activation": "swish"}, ValueError, "activation must be one of .* got 'swish'"),
            ({"activation": torch.nn.GELU()}, ValueError, "activation must be one of .* got GELU"),
            ({"activation": ["gelu"]}, ValueError, "activation must be one of"),
        ]
    if name == "token_gate":
        found += [({"u": t(B, O + 1, C)}, ValueError, r"u must be \(2, 8, 6\), got \(2, 9, 6\)")]
    return found + [
        ({"backend": "gpu"}, ValueError, "backend must be one of .* got 'gpu'"),
        ({"backend": 3}, ValueError, "backend must be one of .* got 3"),
        ({"backend": None}, ValueError, "backend must be one of .* got None"),
        ({"backend": "cuda"}, NotImplementedError, f"cuda cannot run {name}"),
        ({"device": "cpu"}, TypeError, "device"),
        ({"norms": None}, TypeError, "norms"),
    ]


CASES = [pytest.param(name, *case, id=f"{name}-{i}") for name in GOOD
         for i, case in enumerate(cases(name))]  # fmt: skip


@pytest.mark.parametrize(("name", "changed", "error", "told"), CASES)
def test_wrong_input_is_told_and_the_next_call_works(name, changed, error, told):
    function, good = getattr(SF, name), GOOD[name]
    with pytest.raises(error, match=told):
        function(**(good | changed))
    result = function(**good)
    assert isinstance(result, Tensor) and not result.isnan().any()


@pytest.mark.parametrize("name", GOOD)
def test_there_are_twenty_cases_an_op(name):
    assert len(cases(name)) >= 20


def test_the_op_itself_is_safe_to_call():
    """torch.ops can be called by anyone: bad arguments raise there as well."""
    x = torch.zeros(1, 2, 2, 4)
    for shift in ("", "keep", "clamp floor 1,0", "keep floor x,y"):
        with pytest.raises((ValueError, TypeError)):
            torch.ops.shiftmlp.spatial_shift(x, shift, "auto")
    with pytest.raises((RuntimeError, ValueError)):
        torch.ops.shiftmlp.spatial_shift(torch.zeros(4), Shift.S2.spec, "auto")
    with pytest.raises(NotImplementedError):
        torch.ops.shiftmlp.spatial_shift(x, Shift.S2.spec, "gpu")
    assert torch.equal(SF.spatial_shift(x), x)
