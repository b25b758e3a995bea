"""The CUDA backend as users reach it, in the emulator: every option, every gradient alone."""

import re

import emulated
import options
import pytest
import tf32
import torch
from samples import SAMPLES, convert, randn
from test_kernels import exact_dtype
from torch import Tensor
from torch.utils._pytree import tree_leaves

from shiftmlp import _settings, testing
from shiftmlp import functional as SF
from shiftmlp.ops import FORWARD, OPS

PRODUCTS = [
    op for op in OPS.values() if "emulated" in op.kernels and "spatial_shift" not in op.name
]
SUBSETS = [
    pytest.param(op.name, chosen, id=f"{op.name}-{options.label(chosen)}")
    for op in FORWARD
    if "emulated" in op.kernels
    for chosen in emulated.some(options.subsets(op.name))
]


@pytest.fixture(autouse=True)
def emulated_is_a_backend(monkeypatch):
    monkeypatch.setattr(_settings, "BACKENDS", (*_settings.BACKENDS, *emulated.WITH_TF32))


def leaves(name, chosen, backend="emulated") -> dict:
    make = randn(exact_dtype(OPS[name], backend))
    return options.tensors(chosen, lambda *shape: make(*shape).requires_grad_())


def call(name, chosen, made, backend="emulated") -> Tensor:
    return getattr(SF, name)(**options.arguments(chosen, made), backend=backend)


def every_option(name, chosen, backend):
    draws = []
    for _ in range(emulated.DRAWS):
        made = leaves(name, chosen, backend)
        exact = {key: t.detach().double().requires_grad_() for key, t in made.items()}
        cases = (made, backend), (made, "reference"), (exact, "reference")
        results = [call(name, chosen, *case) for case in cases]
        dy = torch.randn_like(results[0])
        draws.append([
            [y.detach(), *torch.autograd.grad(y, given.values(), dy.to(y.dtype))]
            for y, (given, _) in zip(results, cases, strict=True)
        ])  # fmt: skip
    testing.assert_as_good_on_average(draws)


@pytest.mark.parametrize(("name", "chosen"), SUBSETS)
def test_every_option_is_as_good_as_torch(name, chosen):
    every_option(name, chosen, "emulated")


@pytest.mark.parametrize("backend", emulated.WITH_TF32[2:])
@pytest.mark.parametrize(("name", "chosen"), [s for s in SUBSETS if "spatial" not in s.id][::8])
def test_options_in_tf32_are_as_good_as_torch(name, chosen, backend):
    every_option(name, chosen, backend)


@pytest.mark.parametrize(("name", "chosen"), SUBSETS)
def test_only_what_is_asked_for_is_computed(name, chosen):
    """Each gradient alone has the bits of the one among all."""
    made = leaves(name, chosen)
    y = call(name, chosen, made)
    dy = torch.randn_like(y)
    every = torch.autograd.grad(y, made.values(), dy)
    for key, wanted in zip(made, every, strict=True):
        alone = {other: t.detach().requires_grad_(other == key) for other, t in made.items()}
        call(name, chosen, alone).backward(dy)
        assert [other for other, t in alone.items() if t.grad is not None] == [key]
        testing.assert_same_bits(alone[key].grad, wanted)


@pytest.mark.parametrize("backend", emulated.BACKENDS)
@pytest.mark.parametrize("op", PRODUCTS, ids=lambda op: op.name)
def test_many_images(op, backend):
    """So many that sums over them are made in parts."""
    batched = {"dy", *OPS[op.name.removesuffix("_backward")].batched}
    made = [sample(randn(torch.bfloat16)) for sample in SAMPLES[op.name].values()]
    for given in [
        made[1],
        *(args for args in made if args[0].dim() > 2 and 0 < args[0].numel() < 200),
    ]:
        args = [
            torch.cat([arg] * 48) if name in batched and arg is not None else arg
            for name, arg in zip(op.names, given, strict=False)
        ]
        exact = op(*convert(args, Tensor.double), "reference")
        testing.assert_as_good_as_torch(op(*args, backend), op(*args, "reference"), exact)


@pytest.mark.parametrize("backend", emulated.BACKENDS)
@pytest.mark.parametrize("op", PRODUCTS, ids=lambda op: op.name)
def test_strides_are_followed(op, backend):
    """Those that TMA can follow too, each matrix's other ones."""

    def spread(t, pad):
        wide = t.new_full((*t.shape[:-1], t.shape[-1] + 8 + pad), float("nan"))
        return wide[..., 8:-pad].copy_(t)

    for sample in SAMPLES[op.name].values():
        args = sample(randn(torch.bfloat16))
        apart = [
            spread(arg, 8 + 8 * i) if isinstance(arg, Tensor) and arg.dim() > 1 else arg
            for i, arg in enumerate(args)
        ]
        results = [tree_leaves(op(*given, backend)) for given in (apart, args)]
        for ours, wanted in zip(*results, strict=True):
            testing.assert_same_bits(ours, wanted)


@pytest.mark.parametrize("backend", emulated.BACKENDS)
@pytest.mark.parametrize("name", ["token_linear", "token_mlp"])
def test_a_float32_scale_makes_the_result_float32(name, backend):
    op = OPS[name]
    for sample in SAMPLES[name].values():
        args = [*sample(randn(torch.bfloat16))]
        args[op.names.index("scale")] = torch.randn(args[0].shape[-1])
        y = op(*args, backend)
        assert y.dtype == torch.float32
        exact = op(*convert(args, Tensor.double), "reference")
        testing.assert_as_good_as_torch(y, op(*args, "reference"), exact)


@pytest.mark.parametrize("op", PRODUCTS, ids=lambda op: op.name)
def test_what_the_products_cannot_take_is_told(op):
    sample = next(iter(SAMPLES[op.name].values()))
    first, where = op.names[0], {name: index for index, name in enumerate(op.names[:-1])}

    def refusal(args, backend="emulated"):
        with pytest.raises(NotImplementedError) as told:
            op(*args, backend)
        return str(told.value).removeprefix(f"{backend} cannot run {op.name}: ")

    told = refusal(sample(randn(torch.float64)))
    assert told == f"{first} must be bfloat16, float16, float32, got torch.float64"
    told = refusal(sample(randn(torch.float32)))
    assert told == (
        f"{first} in float32 is multiplied in TF32, which PyTorch must be told to allow: "
        'torch.backends.cuda.matmul.fp32_precision = "tf32"'
    )
    args = sample(randn(torch.bfloat16))
    assert refusal(args, "cuda").endswith(f"{first} must be on cuda, got cpu")
    for name, index in where.items():
        if isinstance(args[index], Tensor) and args[index].dim() > 1 and name != first:
            mixed = [*args]
            mixed[index] = args[index].half()
            told = refusal(mixed)
            assert told == f"{name} must be torch.bfloat16 like {first}, got torch.float16"
    mixed = [*args]
    index = where.get("bias", where.get("b2"))
    mixed[index] = args[index].double()
    assert (
        refusal(mixed)
        == "float64 must not mix with other dtypes, got ['torch.bfloat16', 'torch.float64']"
    )
    huge = torch.empty((1, 1, 1), dtype=torch.bfloat16).expand(1, 1, 2**31)
    told = op.refusal("emulated", huge, *args[1:])
    assert re.search(r"less than 2\^31 columns|H, W and C must be at most", told)


@pytest.mark.parametrize("op", PRODUCTS, ids=lambda op: op.name)
def test_float32_takes_the_portable_kernels_everywhere(op):
    args = next(iter(SAMPLES[op.name].values()))(randn(torch.float32))
    with tf32.allowed():
        testing.assert_same_bits(op(*args, "emulated_sm90"), op(*args, "emulated"))


@pytest.mark.parametrize("allow", [
    lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    lambda: torch.set_float32_matmul_precision("high"),
], ids=["allow_tf32", "high"])  # fmt: skip
def test_every_way_to_allow_tf32_counts(allow):
    op = OPS["channel_mlp"]
    args = next(iter(SAMPLES[op.name].values()))(randn(torch.float32))
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        allow()
        assert op.refusal("emulated", *args) is None
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert "TF32" in op.refusal("emulated", *args)


@pytest.mark.parametrize("op", PRODUCTS, ids=lambda op: op.name)
def test_auto_does_not_choose_what_never_ran_on_a_gpu(op):
    _, _, slower = op.kernels["cuda"]
    assert slower(*next(iter(SAMPLES[op.name].values()))(randn())) == "not yet proven on a GPU"
