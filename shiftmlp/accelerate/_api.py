"""``accelerate`` and its relatives."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import nn

from .._settings import check_backend, is_disabled
from ._activations import activations
from ._eligible import Candidate, candidates
from ._family import Swapped, full_name, original_class
from ._plan import Examiner, Wish, facts_of, with_dropout_note
from .report import Report, Row

FACTS = "_shiftmlp"
SILENT = ("EXCLUDED", "ALREADY_FUSED")  # nobody has to be told of what was asked for
CHOICES = {
    "verify": ("quick", "full", False),
    "on_unsupported": ("report", "warn", "raise"),
    "semantics": ("probe", "paper", "skip"),
}


def accelerate(
    model: nn.Module,
    *,
    backend: str = "auto",
    include=None,
    exclude=None,
    example_input=None,
    verify: str | bool = "quick",
    min_gain: float = 1.0,
    on_unsupported: str = "report",
    semantics: str = "probe",
) -> nn.Module:
    """Let the blocks of an existing vision-MLP run in fused calls, and return the same model.

    The class of each known block (timm's ``MixerBlock`` and ``ResBlock``, our plain blocks) is
    swapped for a subclass with another forward. Parameters, state dict, hooks on blocks, names,
    ``isinstance``, deepcopy, pickle and optimizers stay as they are; ``restore`` undoes it.
    ``explain(model)`` tells afterwards what was replaced, what was kept, and why.

    "auto" never loses. Where no kernel but the reference serves a block on the device it is on, the
    block is swapped and checked but runs its own forward there (NOT_FASTER), and has its kernels
    once it is moved. With ``example_input``, blocks that kernels serve are timed, one of each kind,
    against the original: forward, and backward if the model is in training mode. Those of which
    three rounds in four stay below ``min_gain`` are kept. A named backend is used as asked.

    Args:
        backend: "auto" or one of "cuda", "triton", "cpu", "reference".
        include, exclude: which blocks: a pattern for the name ("blocks.[0-3]"), a class, a function
            ``(module, name) -> bool``, or a list of these.
        example_input: a Tensor, a tuple of arguments or a dict of keyword arguments of the model.
            Blocks are then checked on what really reaches them, else on random numbers.
        verify: "quick" compares forward and backward of every block with its own original and a
            float64 copy (at most two samples of ``example_input``), "full" on all samples, False
            not at all. A block outside the policy of ``shiftmlp.testing`` is kept.
        min_gain: see above; 0 times nothing. Above 1, blocks without a kernel are kept as well.
        on_unsupported: what to do about blocks that are kept for other reasons than the caller's:
            "report" lists them in ``explain``, "warn" also warns, "raise" raises, nothing changed.
        semantics: of blocks that shift over space: "probe" compares them with the paper's shift
            even if ``verify`` is False, "paper" takes that for granted, "skip" leaves them alone.

    Raises:
        ValueError, TypeError: an argument is none of the above.
        RuntimeError: ``on_unsupported="raise"`` and a block is kept, or there is none to replace.
    """
    _check_model(model)
    _check_choices(verify=verify, on_unsupported=on_unsupported, semantics=semantics)
    if not isinstance(min_gain, (int, float)) or isinstance(min_gain, bool) or not min_gain >= 0:
        raise ValueError(f"min_gain must be a number >= 0, got {min_gain!r}")
    _check_chooser("include", include)
    _check_chooser("exclude", exclude)
    check_backend(backend)
    wish = Wish(backend, include, exclude, verify, min_gain, semantics)
    return carry_out(model, wish, example_input, on_unsupported)


def carry_out(
    model: nn.Module,
    wish: Wish,
    example_input=None,
    on_unsupported: str = "report",
    tell: Callable[[int, int, Row], None] = lambda done, total, row: None,
) -> nn.Module:
    """``accelerate`` behind its checks; ``tell`` hears of each block that was judged."""
    found = list(candidates(model))
    full = wish.verify == "full"
    inputs = {} if example_input is None else activations(model, found, example_input, full)
    examiner = Examiner(wish, inputs)
    rows = []
    for candidate in found:
        refusal = examiner.refusal(candidate)
        known = refusal is None and example_input is None and _known(candidate, wish)
        rows.append(known or examiner.judge(candidate))
        tell(len(rows), len(found), rows[-1])
    _complain(Report(type(model).__name__, True, tuple(rows)), on_unsupported)
    for candidate, row in zip(found, rows, strict=True):
        _settle(candidate, row, wish.backend)
    return model


def explain(model: nn.Module, example_input=None) -> Report:
    """What ``accelerate(model)`` would do, or once it was called, what it did. Changes nothing.

    The dry run says which kernels would serve (on ``example_input``, see ``accelerate``, or on
    random numbers) and why others do not; it neither verifies nor times.

    Raises:
        TypeError: the model is no ``nn.Module``, or the example nothing to call it with.
    """
    _check_model(model)
    found = list(candidates(model))
    applied = any(FACTS in vars(candidate.block) for candidate in found)
    inputs = {} if example_input is None else activations(model, found, example_input, False)
    examiner = Examiner(Wish(verify=False, min_gain=0, semantics="paper"), inputs)
    rows = [_present(c, examiner) if applied else examiner.judge(c) for c in found]
    return Report(type(model).__name__, applied, tuple(rows))


def restore(model: nn.Module) -> nn.Module:
    """Undo ``accelerate`` exactly, and return the same model.

    Raises:
        RuntimeError: another library has since derived a class from a swapped one.
    """
    _check_model(model)
    swapped = [m for m in model.modules() if isinstance(m, Swapped)]
    for module in swapped:
        _check_undoable(module)
    for module in swapped:
        module.__class__ = original_class(module)
    for module in model.modules():
        vars(module).pop(FACTS, None)
    return model


@contextlib.contextmanager
def accelerated(model: nn.Module, **kwargs) -> Iterator[nn.Module]:
    """Within this block the model is accelerated; takes ``accelerate``'s arguments.

    On leaving, every block has the class and the settings that it had before.
    """
    _check_model(model)
    before = [(m, type(m), vars(m).get(FACTS)) for m in model.modules()]
    try:
        yield accelerate(model, **kwargs)
    finally:
        for module, cls, facts in before:
            if type(module) is not cls:
                module.__class__ = cls
            if facts is None:
                vars(module).pop(FACTS, None)
            else:
                vars(module)[FACTS] = facts


def _known(candidate: Candidate, wish: Wish) -> Row | None:
    """The row of a block that is already as wished."""
    if not candidate.is_swapped or vars(candidate.block)[FACTS]["backend"] != wish.backend:
        return None
    row, moved = _remembered(candidate)
    is_unproven = wish.verify and row.error is None
    is_too_slow = row.backend == "original" and wish.min_gain > 1
    return None if moved or is_unproven or is_too_slow else row


def _remembered(candidate: Candidate) -> tuple[Row, bool]:
    """The row that the block keeps, and whether it has been moved to another device since."""
    facts = vars(candidate.block)[FACTS]
    moved = next(candidate.block.parameters()).device.type != facts["device"]
    return replace(Row(**facts["row"]), name=candidate.name), moved


def _present(candidate: Candidate, examiner: Examiner) -> Row:
    """The row of a block after ``accelerate`` was called on its model."""
    if FACTS not in vars(candidate.block):
        row = examiner.judge(candidate)
        return row if row.action == "kept" else replace(
            row, action="kept", backend=None, sentence="it came after accelerate; call that again"
        )  # fmt: skip
    row, moved = _remembered(candidate)
    if not candidate.is_swapped:
        return row
    if is_disabled():
        return replace(row, reason="DISABLED", sentence="its own forward runs for now")
    if candidate.refusal:
        reason, sentence = candidate.refusal
        return replace(row, reason=reason, sentence=f"since accelerate: {sentence}; call it again")
    if moved:
        now = examiner.judge(candidate)
        note = "moved since accelerate, and not verified on this device; call it again"
        return replace(row, backend=now.backend, kernels=now.kernels, reason=None, sentence=note)
    return with_dropout_note(row, candidate.block)


def _settle(candidate: Candidate, row: Row, backend: str) -> None:
    """Bring the block into the state that its row tells."""
    block = candidate.block
    if candidate.is_swapped:
        _check_undoable(block)
    if row.action == "replaced":
        block.__class__ = candidate.family.swapped(original_class(block))
    elif candidate.is_swapped:
        block.__class__ = original_class(block)
    vars(block)[FACTS] = facts_of(row, backend, block)


def _check_undoable(module: nn.Module) -> None:
    if Swapped not in type(module).__bases__:
        raise RuntimeError(
            f"{full_name(type(module))} was derived from an accelerated block's class; undo what "
            "made it first"
        )


def _complain(report: Report, on_unsupported: str) -> None:
    kept = [row for row in report.kept if row.reason not in SILENT]
    if on_unsupported == "report" or (report.rows and not kept):
        return
    text = str(replace(report, rows=tuple(kept)))
    if on_unsupported == "raise":
        raise RuntimeError(f"blocks cannot be replaced, nothing was changed\n{text}")
    warnings.warn(text, stacklevel=4)


def _check_model(model) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")


def _check_choices(**given) -> None:
    for name, value in given.items():
        # 0 == False is no choice of ours.
        if not any(value is choice or (value == choice and choice) for choice in CHOICES[name]):
            raise ValueError(f"{name} must be one of {CHOICES[name]}, got {value!r}")


def _check_chooser(name: str, chooser) -> None:
    for one in chooser if isinstance(chooser, (list, tuple, set)) else [chooser]:
        if one is not None and not isinstance(one, str) and not callable(one):
            raise TypeError(
                f"{name} must be name patterns, classes or functions, got {type(one).__name__}"
            )
