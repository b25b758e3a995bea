"""Blocks of existing models are swapped, stay what they were, and can be put back."""

import copy
import io
import json
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from small_models import (
    Wrapped,
    every_model,
    gradients,
    images,
    mixer,
    mlp_mixer,
    ops_called,
    put,
    reasons,
    reference,
    s2mlp,
)
from torch import nn

import shiftmlp
from shiftmlp.testing import assert_same_bits


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


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_the_example_leaves_the_random_state():
    model = nn.Sequential(Noisy(), mlp_mixer.MixerBlock(8, 4))
    before = torch.get_rng_state()
    reference(model, example_input=torch.zeros(2, 4, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_semantics_of_shift_blocks():
    model = reference(s2mlp(), verify=False)
    assert all(row.error is not None for row in shiftmlp.explain(model).rows)
    model = reference(s2mlp(), verify=False, semantics="paper")
    assert all(row.error is None for row in shiftmlp.explain(model).replaced)
    assert reasons(reference(s2mlp(), semantics="skip")) == ["EXCLUDED"] * 2


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
    model = mixer()
    put("mlp_tokens.fc1", Wrapped)(model.blocks[1])
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
    code = (
        "import sys, shiftmlp, shiftmlp.accelerate.mixer;"
        "print([m for m in ('timm', 'rich', 'matplotlib', 'torchvision') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (answer.stdout, answer.stderr) == ("[]\n", "")
