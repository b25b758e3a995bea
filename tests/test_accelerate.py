"""Blocks of existing models: what is replaced, what is kept and why, and that it can be undone."""

import copy
import io
import json
import pickle
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import shiftmlp
from shiftmlp.accelerate import REASONS, _check, _plan
from shiftmlp.ops import OPS
from shiftmlp.testing import assert_same_bits

mlp_mixer = pytest.importorskip("timm.models.mlp_mixer")
SMALL = {"num_classes": 5, "img_size": 16, "patch_size": 4, "embed_dim": 24, "num_blocks": 2}


def mixer(**options) -> nn.Module:
    return opened(mlp_mixer.MlpMixer(**SMALL | options))


def resmlp(**options) -> nn.Module:
    block = {"block_layer": mlp_mixer.ResBlock, "norm_layer": mlp_mixer.Affine, "mlp_ratio": 4}
    return opened(mlp_mixer.MlpMixer(**SMALL | block | options))


def s2mlp(**options) -> nn.Module:
    sizes = {name: SMALL[name] for name in ("num_classes", "patch_size", "embed_dim", "num_blocks")}
    return opened(shiftmlp.create_model("s2mlp_deep", **sizes | options))


def opened(model: nn.Module) -> nn.Module:
    """timm's heads begin at zero, where equality would prove nothing."""
    nn.init.normal_(model.head.weight, std=0.1)
    return model.eval()


MODELS = {"mixer": mixer, "resmlp": resmlp, "s2mlp": s2mlp}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def reference(model: nn.Module, **options) -> nn.Module:
    """Accelerated by what every machine has."""
    return shiftmlp.accelerate(model, backend="reference", **options)


def reasons(model: nn.Module) -> list[str | None]:
    return [row.reason for row in shiftmlp.explain(model).rows]


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


@every_model
def test_an_accelerated_model_is_the_original(make):
    model = make()
    original = copy.deepcopy(model)
    assert reference(model) is model
    report = shiftmlp.explain(model)
    assert len(report.replaced) == 2 and not report.kept
    for row in report.rows:
        assert row.backend == "reference" and 0 < row.error <= row.allowed
    assert all(type(b).__name__.startswith("Fused") for b in model.blocks)
    assert all(isinstance(b, type(o)) for b, o in zip(model.blocks, original.blocks, strict=True))
    assert shiftmlp.verify(original, model, images())


@every_model
def test_restore_is_exact(make):
    model = make()
    text, state, before = (
        repr(model),
        copy.deepcopy(model.state_dict()),
        vars(model.blocks[0]).copy(),
    )
    kinds, y, grads = list(map(type, model.modules())), model(images()), gradients(model, images())
    reference(model)
    assert repr(model) != text and list(model.state_dict()) == list(state)
    assert shiftmlp.restore(model) is model
    assert repr(model) == text and list(map(type, model.modules())) == kinds
    assert vars(model.blocks[0]).keys() == before.keys()
    assert_same_bits(list(model.state_dict().values()), list(state.values()))
    assert_same_bits(model(images()), y)
    assert_same_bits(list(gradients(model, images()).values()), list(grads.values()))


@pytest.mark.parametrize("training", [True, False])
def test_accelerate_leaves_no_trace_in_state(training):
    model = mixer().train(training)
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    model(images()).sum().backward()
    kept = [t.clone() for p in model.parameters() for t in (p, p.grad)]
    random, grad = torch.get_rng_state(), torch.is_grad_enabled()
    reference(model, example_input=images())
    assert [module.training for module in model.modules()] == modes
    assert_same_bits([t for p in model.parameters() for t in (p, p.grad)], kept)
    assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled() == grad
    assert not any(block._forward_pre_hooks for block in model.blocks)


@every_model
def test_swapped_blocks_survive_copies_pickles_and_saving(make):
    model = reference(make())
    y = model(images())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), saved):
        assert_same_bits(twin(images()), y)
        assert len(shiftmlp.explain(twin).replaced) == 2
        assert "Fused" not in repr(shiftmlp.restore(twin))
    make().load_state_dict(model.state_dict(), strict=True)


@every_model
def test_swapped_blocks_compile_in_one_graph(make):
    torch._dynamo.reset()
    model = reference(make())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    grads = gradients(model, images())
    assert_same_bits(compiled(images()), model(images()))
    compiled(images()).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, grads[name])


def test_a_swapped_block_calls_the_ops_and_a_disabled_one_does_not():
    model = reference(mixer())
    assert ops_called(model) == {"token_mlp", "channel_mlp"}
    with shiftmlp.disabled():
        assert ops_called(model) == set()
        assert reasons(model) == ["DISABLED"] * 2
    assert ops_called(model) == {"token_mlp", "channel_mlp"}


def ops_called(model: nn.Module) -> set[str]:
    with _plan.Kernels() as kernels:
        model(images())
    return set(kernels.serving)


def test_gradient_checkpointing_and_hooks_on_blocks():
    model = reference(mixer()).train()
    grads = gradients(model, images())
    seen = []
    model.blocks[1].register_forward_hook(lambda *args: seen.append(1))
    model.set_grad_checkpointing()
    assert_same_bits(list(gradients(model, images()).values()), list(grads.values()))
    assert seen


def test_accelerate_is_idempotent_and_follows_the_wish():
    model = reference(mixer())
    rows = shiftmlp.explain(model).rows
    assert shiftmlp.explain(reference(model)).rows == rows
    reference(model, exclude="blocks.0")
    assert reasons(model) == ["EXCLUDED", None]
    assert type(model.blocks[0]) is mlp_mixer.MixerBlock
    reference(model, include=[lambda module, name: name == "blocks.0"])
    assert reasons(model) == [None, "EXCLUDED"]
    reference(model, exclude=mlp_mixer.MixerBlock)
    assert reasons(model) == ["EXCLUDED"] * 2


def test_accelerated_puts_back_what_was_there():
    model = mixer()
    with shiftmlp.accelerated(model, backend="reference") as same:
        assert same is model and len(shiftmlp.explain(model).replaced) == 2
    assert type(model.blocks[0]) is mlp_mixer.MixerBlock and not shiftmlp.explain(model).applied
    reference(model)
    with pytest.raises(KeyError), shiftmlp.accelerated(model, exclude="*"):
        assert type(model.blocks[0]) is mlp_mixer.MixerBlock
        raise KeyError
    assert len(shiftmlp.explain(model).replaced) == 2


class Derived(mlp_mixer.MixerBlock):
    def forward(self, x):
        return x


class Wrapped(nn.Module):
    """What LoRA makes of a layer: it has a weight, but computes more."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)
    in_features = property(lambda self: self.base_layer.in_features)

    def forward(self, x):
        return 2 * self.base_layer(x)


class QuantLinear(nn.Linear):
    pass


def quantize_tensor(block):
    from torch.testing._internal.two_tensor import TwoTensor

    weight = block.mlp_channels.fc1.weight.data
    block.mlp_channels.fc1.weight = nn.Parameter(TwoTensor(weight, weight.clone()))


def shard(block):
    from torch.distributed.tensor import DTensor

    weight = block.mlp_channels.fc1.weight.data
    mesh = pytest.importorskip("torch.distributed.device_mesh").DeviceMesh
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    sharded = DTensor.from_local(weight, mesh("cpu", [0]))
    block.mlp_channels.fc1.weight = nn.Parameter(sharded)


def put(path: str, make):
    """An edit that replaces one part of a block."""

    def edit(block):
        owner, _, name = path.rpartition(".")
        owner = block.get_submodule(owner)
        setattr(owner, name, make(getattr(owner, name)))

    return edit


EDITS = {
    "HOOKED_CHILD": lambda block: block.norm1.register_forward_hook(lambda *args: None),
    "PARAMETRIZED": lambda block: parametrize.register_parametrization(
        block.mlp_tokens.fc1, "weight", nn.Identity()
    ),
    "LORA": put("mlp_tokens.fc1", Wrapped),
    "QUANTIZED": put("mlp_channels.fc2", lambda layer: QuantLinear(96, 24)),
    "QUANTIZED tensor": quantize_tensor,
    "SHARDED_CHILD": shard,
    "UNSUPPORTED_ACT": put("mlp_tokens.act", lambda act: nn.SiLU()),
    "UNSUPPORTED_NORM": put("norm2", lambda norm: nn.GroupNorm(1, 16)),
    "UNSUPPORTED_NORM inside": put("mlp_tokens.norm", lambda norm: nn.LayerNorm(12)),
    "UNSUPPORTED_LAYER": put("mlp_tokens.drop1", lambda drop: nn.AlphaDropout(0.1)),
    "DTYPE": put("norm1", lambda norm: norm.double()),
    "DEVICE": lambda block: block.to("meta"),
    "SUBCLASSED": lambda block: setattr(block, "__class__", Derived),
    "SUBCLASSED instance": lambda block: setattr(block, "forward", lambda x: x),
}


@pytest.mark.parametrize("case", EDITS)
def test_blocks_that_cannot_be_served_are_kept_with_a_reason(case):
    model = mixer()
    EDITS[case](model.blocks[1])
    kind = type(model.blocks[1])
    dry = reasons(model)
    reference(model)
    row = shiftmlp.explain(model).rows[1]
    assert (row.action, row.reason) == ("kept", case.split()[0]) and row.sentence
    assert type(model.blocks[1]) is kind and type(model.blocks[0]).__name__ == "FusedMixerBlock"
    assert dry[1] == row.reason
    with pytest.raises(RuntimeError, match=row.reason):
        reference(mixer_with(EDITS[case]), on_unsupported="raise")


def mixer_with(edit) -> nn.Module:
    model = mixer()
    edit(model.blocks[1])
    return model


def test_every_reason_is_of_the_closed_list_and_reached():
    reached = {case.split()[0] for case in EDITS} | {
        # each of these has a test of its own in this file
        "ALREADY_FUSED", "BACKEND_REFUSES", "DISABLED", "DROPOUT_TRAINING", "EXCLUDED",
        "NOT_FASTER", "VERIFY_FAILED",
    }  # fmt: skip
    assert set(REASONS) - reached == {"INPLACE_SHIFT"}  # kept for adapters of published ports


def test_gmixer_is_kept_since_its_mlp_is_gated():
    from timm.layers import GluMlp

    model = mixer(mlp_layer=GluMlp, act_layer=nn.SiLU, mlp_ratio=(1.0, 4.0))
    assert reasons(model) == ["UNSUPPORTED_LAYER"] * 2


def test_our_own_blocks_are_already_fused():
    model = nn.Sequential(shiftmlp.nn.MixerBlock(8, 4))
    assert reasons(shiftmlp.accelerate(model)) == ["ALREADY_FUSED"]


def test_nothing_changes_while_disabled():
    model = mixer()
    with shiftmlp.disabled():
        shiftmlp.accelerate(model)
        assert reasons(model) == ["DISABLED"] * 2
    assert type(model.blocks[0]) is mlp_mixer.MixerBlock


def test_dropout_in_training_runs_the_original():
    model = mixer(proj_drop_rate=0.5)
    original = copy.deepcopy(model)
    reference(model)
    assert reasons(model) == ["DROPOUT_TRAINING"] * 2
    assert ops_called(model) == {"token_mlp", "channel_mlp"}
    assert ops_called(model.train()) == set()
    torch.manual_seed(3)
    wanted = original.train()(images())
    torch.manual_seed(3)
    assert_same_bits(model(images()), wanted)


def test_dropout_in_force_does_not_spoil_the_check():
    model = reference(mixer(proj_drop_rate=0.5).train())
    assert [row.action for row in shiftmlp.explain(model).rows] == ["replaced"] * 2


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_the_example_leaves_the_random_state():
    model = nn.Sequential(Noisy(), mlp_mixer.MixerBlock(8, 4))
    before = torch.get_rng_state()
    reference(model, example_input=torch.zeros(2, 4, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_wrapped_or_hooked_afterwards_is_honoured():
    model, original = reference(mixer()), mixer()
    original.load_state_dict(model.state_dict())
    for one in (model, original):
        put("mlp_tokens.fc1", Wrapped)(one.blocks[0])
    assert_same_bits(
        model.blocks[0](torch.ones(1, 16, 24)), original.blocks[0](torch.ones(1, 16, 24))
    )
    assert reasons(model) == ["LORA", None]
    assert reasons(reference(model)) == ["LORA", None]
    assert type(model.blocks[0]) is mlp_mixer.MixerBlock
    fired = []
    model.blocks[1].mlp_tokens.fc2.register_forward_hook(lambda *args: fired.append(1))
    model(images())
    assert fired


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


def test_semantics_of_shift_blocks(bare):
    model = shiftmlp.accelerate(s2mlp(), verify=False)
    assert all(row.error is not None for row in shiftmlp.explain(model).rows)
    model = shiftmlp.accelerate(s2mlp(), verify=False, semantics="paper")
    assert all(row.error is None for row in shiftmlp.explain(model).replaced)
    assert reasons(shiftmlp.accelerate(s2mlp(), semantics="skip")) == ["EXCLUDED"] * 2


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_verify(make, dtype):
    model = reference(make().to(dtype), example_input=images().to(dtype), verify="full")
    assert len(shiftmlp.explain(model).replaced) == 2


def test_a_report_prints_and_is_json():
    model = mixer()
    dry = shiftmlp.explain(model)
    assert not dry.applied and "2 of 2 blocks would be replaced" in str(dry)
    assert type(model.blocks[0]) is mlp_mixer.MixerBlock and not hasattr(
        model.blocks[0], "_shiftmlp"
    )
    reference(model, exclude="blocks.1")
    report = shiftmlp.explain(model)
    text = str(report)
    assert "1 of 2 blocks replaced" in text and "blocks.1: EXCLUDED: exclude names it" in text
    document = json.loads(report.to_json())
    assert document == report.to_dict() and document["rows"][1]["reason"] == "EXCLUDED"
    assert {"name", "found", "action", "backend", "reason", "sentence"} <= set(document["rows"][0])


def test_a_model_with_nothing_to_replace_says_so():
    report = shiftmlp.explain(shiftmlp.accelerate(nn.Linear(2, 2)))
    assert not report.rows and "nothing to replace" in str(report)
    with pytest.raises(RuntimeError, match="nothing to replace"):
        shiftmlp.accelerate(nn.Linear(2, 2), on_unsupported="raise")


def test_on_unsupported_warns_or_changes_nothing():
    model = mixer_with(EDITS["LORA"])
    with pytest.raises(RuntimeError, match="LORA"):
        reference(model, on_unsupported="raise")
    assert not shiftmlp.explain(model).applied
    with pytest.warns(UserWarning, match="LORA"):
        reference(model, on_unsupported="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reference(mixer(), on_unsupported="warn", exclude="blocks.0")


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("backend", "cdua", ValueError), ("verify", "slow", ValueError), ("verify", 0, ValueError),
        ("min_gain", -1, ValueError), ("min_gain", "2", ValueError), ("include", 3, TypeError),
        ("exclude", [1.5], TypeError), ("example_input", "x", TypeError),
        ("on_unsupported", "shout", ValueError), ("semantics", "guess", ValueError),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(argument, value, error):
    model = mixer()
    with pytest.raises(error, match=argument):
        shiftmlp.accelerate(model, **{argument: value})
    assert not shiftmlp.explain(model).applied


def test_a_model_must_be_a_module():
    for function in (shiftmlp.accelerate, shiftmlp.explain, shiftmlp.restore):
        with pytest.raises(TypeError, match="model"):
            function("mixer")


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


def test_a_whole_model_may_be_one_block():
    block = mlp_mixer.MixerBlock(8, 4)
    report = shiftmlp.explain(reference(block))
    assert [row.name for row in report.replaced] == ["(model)"]
    assert type(shiftmlp.restore(block)) is mlp_mixer.MixerBlock


def test_a_class_derived_from_a_swapped_one_is_not_undone():
    model = reference(mixer())
    block = model.blocks[0]
    block.__class__ = type("Sharded", (type(block),), {})
    with pytest.raises(RuntimeError, match="Sharded"):
        shiftmlp.restore(model)
    assert "Fused" in type(model.blocks[1]).__name__


def test_import_brings_in_no_model_library():
    import subprocess

    code = (
        "import sys, shiftmlp, shiftmlp.accelerate.mixer;"
        "print([m for m in ('timm', 'rich', 'matplotlib', 'torchvision') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (answer.stdout, answer.stderr) == ("[]\n", "")
