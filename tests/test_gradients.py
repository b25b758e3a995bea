"""Gradients: by finite differences, against PyTorch's autograd, twice, in part, and refused."""

import functools
import os

import options
import pytest
import torch
import torch.nn.functional as F
from samples import randn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import shiftmlp
from shiftmlp import Affine, Shift, testing
from shiftmlp import functional as SF
from shiftmlp.ops import FORWARD, OPS

SUBSETS = [
    pytest.param(op.name, chosen, id=f"{op.name}-{options.label(chosen)}")
    for op in FORWARD
    for chosen in options.subsets(op.name)
]
FULL = [
    pytest.param(op.name, options.subsets(op.name)[-1] | extra, id=f"{op.name}-{name}")
    for op in FORWARD
    for name, extra in (
        {name: {"activation": name} for name in ("gelu", "gelu_tanh", "relu")}
        if op.name in options.ACTIVATING
        else {"plain": {}}
    ).items()
]


def leaves(chosen, dtype=torch.float64) -> dict:
    make = randn(dtype)
    return options.tensors(chosen, lambda *shape: make(*shape).requires_grad_())


# "auto" leaves gradients in float64 to PyTorch.
BACKEND = os.environ.get("SHIFTMLP_BACKEND", "reference")


def as_function(name, chosen, made, backend=BACKEND):
    """The functional as a function of its tensors alone."""

    def function(*tensors):
        given = dict(zip(made, tensors, strict=True))
        return getattr(SF, name)(**options.arguments(chosen, given), backend=backend)

    return function


def plain(name, given):
    """The formula in PyTorch modules' own terms, differentiated by PyTorch."""

    def norm(x, value):
        if value is None:
            return x
        if isinstance(value, Affine):
            return value.alpha * x + value.beta
        return F.layer_norm(x, x.shape[-1:], value.weight, value.bias, value.eps)

    def shift(x):
        return SF.spatial_shift(x, given["shift"], backend="reference")

    act = {
        "gelu": F.gelu,
        "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
        "relu": F.relu,
        None: lambda x: x,
    }[given.get("activation")]
    g = given.get
    if name == "spatial_shift":
        return shift(g("x"))
    if name == "token_gate":
        return g("u") * F.linear(norm(g("v"), g("norm")).mT, g("weight"), g("bias")).mT
    if name == "shift_linear":
        y = act(F.linear(shift(g("x")), g("weight"), g("bias")))
    else:
        x = norm(g("x"), g("norm"))
        x = x.mT if name.startswith("token") else x
        if name == "token_linear":
            y = F.linear(x, g("weight"), g("bias"))
        else:
            hidden = act(F.linear(x, g("w1"), g("b1")))
            y = F.linear(shift(hidden) if name == "shift_mlp" else hidden, g("w2"), g("b2"))
        y = norm(y.mT if name.startswith("token") else y, g("post_norm"))
    y = y if g("scale") is None else y * g("scale")
    return y if g("residual") is None else y + g("residual")


@pytest.mark.parametrize(("name", "chosen"), SUBSETS)
def test_gradcheck(name, chosen):
    made = leaves(chosen)
    assert gradcheck(as_function(name, chosen, made), tuple(made.values()))


@pytest.mark.parametrize(("name", "chosen"), SUBSETS)
def test_equals_autograd_through_plain_modules(name, chosen):
    made = leaves(chosen)
    given = options.arguments(chosen, made)
    ours, theirs = as_function(name, chosen, made)(*made.values()), plain(name, given)
    testing.assert_close_to_rounding(ours, theirs)
    dy = torch.randn_like(ours)
    grads = [torch.autograd.grad(y, made.values(), dy) for y in (ours, theirs)]
    testing.assert_close_to_rounding(*grads)


@pytest.mark.parametrize(("name", "chosen"), FULL)
def test_second_derivatives_are_right(name, chosen):
    made = leaves(chosen)
    assert gradgradcheck(as_function(name, chosen, made), tuple(made.values()))


@pytest.mark.parametrize(("name", "chosen"), FULL)
def test_second_derivatives_are_right_for_a_constant_incoming_gradient(name, chosen):
    """A gradient penalty on y.sum(): frameworks drop it silently."""
    made = leaves(chosen)
    given = options.arguments(chosen, made)
    penalties = []
    for y in (as_function(name, chosen, made)(*made.values()), plain(name, given)):
        grads = torch.autograd.grad(y.sum(), made.values(), create_graph=True)
        penalties.append(sum(grad.square().sum() for grad in grads))
    if name == "spatial_shift":
        assert not any(p.requires_grad for p in penalties)  # linear, so the penalty is a constant
        return
    seconds = [
        torch.autograd.grad(p, made.values(), allow_unused=True, materialize_grads=True)
        for p in penalties
    ]
    assert any(grad.any() for grad in seconds[1])
    testing.assert_close_to_rounding(*seconds)


@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_only_what_is_asked_for_is_computed(op, monkeypatch):
    """Each input alone gets its gradient, equal to the one among all; None for the rest."""
    chosen = options.subsets(op.name)[-1]
    made = leaves(chosen)
    y = as_function(op.name, chosen, made)(*made.values())
    dy = torch.randn_like(y)
    every = dict(zip(made, torch.autograd.grad(y, made.values(), dy), strict=True))

    asked = []
    launch, *rest = op.backward.kernels["reference"]
    counted = lambda *args: asked.append(sum(args[-1])) or launch(*args)  # noqa: E731
    monkeypatch.setitem(op.backward.kernels, "reference", (counted, *rest))
    for name in made:
        alone = {key: t.detach().requires_grad_(key == name) for key, t in made.items()}
        as_function(op.name, chosen, made, "reference")(*alone.values()).backward(dy)
        assert [key for key, t in alone.items() if t.grad is not None] == [name]
        testing.assert_close_to_rounding(alone[name].grad, every[name])
    assert all(count == 1 for count in asked)
    assert len(asked) == len(made) - ("residual" in made)


@pytest.mark.parametrize(("name", "chosen"), FULL)
def test_gradients_of_any_layout(name, chosen):
    made = leaves(chosen)
    y = as_function(name, chosen, made)(*made.values())
    dense = torch.randn_like(y)
    transposed = dense.transpose(0, -1).contiguous().transpose(0, -1)
    cut = torch.cat([dense, dense], -1)[..., : y.shape[-1]]
    wanted = torch.autograd.grad(y, made.values(), dense, retain_graph=True)
    for dy in (transposed, cut):
        assert not dy.is_contiguous() or dy.numel() <= 1 or dy.shape[0] == 1
        got = torch.autograd.grad(y, made.values(), dy, retain_graph=True)
        testing.assert_close_to_rounding(got, wanted)
        assert all(
            grad.is_contiguous() or key == "residual" for key, grad in zip(made, got, strict=True)
        )
    summed = torch.autograd.grad(y.sum(), made.values(), retain_graph=True)
    ones = torch.autograd.grad(y, made.values(), torch.ones_like(y))
    testing.assert_close_to_rounding(summed, ones)


@pytest.mark.parametrize(("name", "chosen"), FULL)
def test_forward_mode_raises(name, chosen):
    made = {key: t.detach() for key, t in leaves(chosen).items()}
    function = as_function(name, chosen, made)
    tensors = tuple(made.values())
    with pytest.raises(NotImplementedError, match=f"{name} has no forward-mode derivative"):
        torch.func.jvp(function, tensors, tensors)
    with forward_ad.dual_level(), torch.no_grad():
        dual = forward_ad.make_dual(tensors[0], tensors[0])
        with pytest.raises(NotImplementedError, match="forward-mode"):
            function(dual, *tensors[1:])
    function(*tensors)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("name", "chosen"), FULL)
def test_torch_func_transforms(name, chosen, backend):
    """vmap over the batch, over a weight, and per-sample gradients: each equals a loop."""
    made = {key: t.detach() for key, t in leaves(chosen).items()}
    function = as_function(name, chosen, made, backend)
    stacked = tuple(torch.stack([t, 2 * t, -t]) for t in made.values())
    loop = torch.stack([function(*parts) for parts in zip(*stacked, strict=True)])
    testing.assert_close_to_rounding(torch.vmap(function)(*stacked), loop)

    first = tuple(made.values())[1:]
    over_x = torch.vmap(lambda x: function(x, *first))(stacked[0])
    by_hand = torch.stack([function(x, *first) for x in stacked[0]])
    testing.assert_close_to_rounding(over_x, by_hand)

    loss = lambda *tensors: function(*tensors).square().sum()  # noqa: E731
    gradients = torch.vmap(torch.func.grad(loss))(*stacked)
    by_hand = torch.stack([torch.func.grad(loss)(*parts) for parts in zip(*stacked, strict=True)])
    testing.assert_close_to_rounding(gradients, by_hand)


def names_in_graph(y) -> set[str]:
    found, open_nodes = set(), [y.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        found.add(type(node).__name__)
        open_nodes += [before for before, _ in node.next_functions if before is not None]
    return found


@pytest.mark.parametrize("name", ["shift_linear", "shift_mlp"])
def test_what_is_left_to_pytorch_shifts_by_the_op(name, monkeypatch):
    for chosen in options.subsets(name):
        made = leaves(chosen)
        function = as_function(name, chosen, made, "auto")
        ours = function(*made.values())
        with monkeypatch.context() as without:
            without.setattr(OPS[name], "composed", None)
            wanted = function(*made.values())
        assert "SpatialShiftBackward" in names_in_graph(ours) - names_in_graph(wanted)
        dy = torch.randn_like(ours)
        grads = [torch.autograd.grad(y, made.values(), dy) for y in (ours, wanted)]
        testing.assert_close_to_rounding(ours, wanted)
        testing.assert_close_to_rounding(*grads)


@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_both_doors_are_one(op):
    """The autograd Function and the op give the same bits."""
    chosen = options.subsets(op.name)[-1]
    taken = {}

    def record(*args):
        taken["args"] = args
        return launch(*args)

    launch, *rest = op.kernels["reference"]
    op.kernels["reference"] = (record, *rest)
    try:
        made = {key: t.detach() for key, t in leaves(chosen).items()}
        as_function(op.name, chosen, made, "reference")(*made.values())
    finally:
        op.kernels["reference"] = (launch, *rest)
    results = []
    function = getattr(shiftmlp.autograd, op.function.__name__)
    for door in (function.apply, op.overload):
        args = [arg.clone().requires_grad_() if isinstance(arg, torch.Tensor) else arg
                for arg in taken["args"]]  # fmt: skip
        y = door(*args, "reference")
        y.backward(torch.ones_like(y))
        results.append([y, *(arg.grad for arg in args if isinstance(arg, torch.Tensor))])
    testing.assert_same_bits(*results)
    assert type(y.grad_fn).__name__ == f"{function.__name__}Backward"


def test_backward_op_called_on_leaves_says_what_to_do():
    dy = torch.randn(1, 2, 2, 4, requires_grad=True)
    with pytest.raises(NotImplementedError, match="differentiate twice through spatial_shift"):
        torch.ops.shiftmlp.spatial_shift_backward(dy, Shift.S2.spec, [True], "auto")


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_frozen_and_checkpointed(op, backend):
    chosen = options.subsets(op.name)[-1]
    made = leaves(chosen)
    function = as_function(op.name, chosen, made, backend)
    y = function(*made.values())
    wanted = torch.autograd.grad(y.square().sum(), made.values())
    with torch.inference_mode():
        testing.assert_same_bits(function(*made.values()).clone(), y.detach())
    again = torch.utils.checkpoint.checkpoint(function, *made.values(), use_reentrant=False)
    got = torch.autograd.grad(again.square().sum(), made.values())
    testing.assert_same_bits(got, wanted)


@pytest.mark.parametrize(("name", "chosen"), FULL)
def test_where_the_reference_is_fastest_pytorch_differentiates_it(name, chosen):
    """And keeps what the op's own backward would compute again."""
    made = leaves(chosen)  # float64, for which "auto" means the reference
    with shiftmlp.use_backend("auto"):
        y = as_function(name, chosen, made, "auto")(*made.values())
    other = as_function(name, chosen, made, "reference")(*made.values())
    testing.assert_same_bits(y, other)
    function = OPS[name].function.__name__
    if name != "spatial_shift":
        assert type(other.grad_fn).__name__ == f"{function}Backward" != type(y.grad_fn).__name__
    dy = torch.randn_like(y)
    got, wanted = (torch.autograd.grad(out, made.values(), dy) for out in (y, other))
    testing.assert_close_to_rounding(got, wanted)
