"""What is to become of each block, found out on copies: nothing changes before all is known."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn

from .._settings import is_disabled, resolve
from ._check import Agreement, compare_forwards, random_like, results, twin
from ._eligible import Candidate, Refusal, is_chosen
from ._family import full_name, original_class
from ._timing import ROUNDS, gain_of, in_turns
from ._trace import Kernels
from .report import Row

QUICK = 2  # samples of a real activation that "quick" compares


@dataclass(frozen=True)
class Wish:
    """The arguments of ``accelerate``."""

    backend: str = "auto"
    include: object = None
    exclude: object = None
    verify: str | bool = "quick"
    min_gain: float = 1.0
    semantics: str = "probe"


@dataclass
class Examiner:
    """Judges one block after the other; blocks of one kind share the choice and the timing.

    ``inputs`` are real activations by block name; ``is_timed`` says that they are the user's.
    """

    wish: Wish
    inputs: dict[str, Tensor]
    kinds: dict[tuple, tuple[Kernels, float | None, float]] = field(default_factory=dict)

    def judge(self, candidate: Candidate) -> Row:
        found = full_name(original_class(candidate.block))
        row = Row(candidate.name, found, "kept")
        if refusal := self.refusal(candidate):
            return replace(row, reason=refusal[0], sentence=refusal[1])
        try:
            return self._examine(candidate, row)
        except NotImplementedError as error:
            return replace(row, reason="BACKEND_REFUSES", sentence=_first_line(error))
        except Exception as error:  # the block or a kernel may raise anything; it stays as it was
            sentence = f"its check raised {type(error).__name__}: {_first_line(error)}"
            return replace(row, reason="VERIFY_FAILED", sentence=sentence)

    def refusal(self, candidate: Candidate) -> Refusal:
        wish, (name, block, family, refusal) = self.wish, candidate
        if is_disabled():
            return "DISABLED", "shiftmlp.disabled() or SHIFTMLP_DISABLE=1 is in force"
        if wish.include is not None and not is_chosen(wish.include, block, name):
            return "EXCLUDED", "include does not name it"
        if wish.exclude is not None and is_chosen(wish.exclude, block, name):
            return "EXCLUDED", "exclude names it"
        if family.shifts and wish.semantics == "skip":
            return "EXCLUDED", 'semantics="skip" leaves spatial shifts alone'
        return refusal

    def _examine(self, candidate: Candidate, row: Row) -> Row:
        block, family, wish = candidate.block, candidate.family, self.wish
        x = self.inputs.get(candidate.name)
        is_auto = resolve(wish.backend) == "auto"
        timed = x is not None and is_auto and wish.min_gain > 0
        x = random_input(candidate) if x is None else x
        kernels, gain, at_most = self._kind(candidate, x, timed)
        row = replace(row, backend=kernels.backends, kernels=kernels.serving, gain=gain)
        if wish.verify or (family.shifts and wish.semantics == "probe"):
            agreement = self._compare(candidate, x if wish.verify == "full" else x[:QUICK])
            row = replace(row, **agreement._asdict())
            if not agreement.holds:
                return replace(row, reason="VERIFY_FAILED", sentence=_mismatch(agreement))
        if is_auto and kernels.only_reference():
            return _idle(row, kernels, x.device.type, wish.min_gain)
        if gain is not None and at_most < wish.min_gain:
            sentence = f"runs at {gain:.2f} times the original's speed, wanted {wish.min_gain:g}"
            return replace(row, reason="NOT_FASTER", sentence=sentence)
        return with_dropout_note(replace(row, action="replaced"), block)

    def _kind(self, candidate: Candidate, x: Tensor, timed: bool):
        """``(kernels, gain or None, the gain that is hardly exceeded)``, once for blocks alike."""
        block = candidate.block
        shapes = tuple(tuple(p.shape) for p in block.parameters())
        kind = original_class(block), x.shape[1:], x.dtype, x.device, shapes, block.training
        if kind not in self.kinds:
            kernels = kernels_of(candidate, x, self.wish.backend)
            gain, at_most = None, float("inf")
            if timed and not kernels.only_reference():
                gain, at_most = self._time(candidate, x)
            self.kinds[kind] = kernels, gain, at_most
        return self.kinds[kind]

    def _compare(self, candidate: Candidate, x: Tensor) -> Agreement:
        original, fused = forwards(candidate, self.wish.backend)
        return compare_forwards(candidate.block, original, fused, x)

    def _time(self, candidate: Candidate, x: Tensor) -> tuple[float, float]:
        """Forward, and backward where the block is in training mode."""
        copy = twin(candidate.block, lambda t: t.detach().clone())
        dy = random_like(x, seed=1)

        def program(forward: Callable):
            if candidate.block.training:
                return lambda: results(forward, copy, x, dy)
            return lambda: forward(copy, x)

        original, fused = map(program, forwards(candidate, self.wish.backend))
        with torch.inference_mode(False), torch.set_grad_enabled(candidate.block.training):
            pairs = list(in_turns(original, fused, x.device, ROUNDS))
            if gain_of(pairs)[1] < self.wish.min_gain:
                # A machine that was busy for a moment must not decide.
                pairs += in_turns(original, fused, x.device, 3 * ROUNDS)
            return gain_of(pairs)


def forwards(candidate: Candidate, backend: str) -> tuple[Callable, Callable]:
    """The original's and the fused forward, each ``(block, x) -> y``, free of the block's hooks."""
    cls, family = original_class(candidate.block), candidate.family
    return cls.forward, lambda block, x: family.forward(block, x, backend)


def kernels_of(candidate: Candidate, x: Tensor, backend: str) -> Kernels:
    """The kernels that serve this block, forward and backward."""
    _, fused = forwards(candidate, backend)
    with torch.inference_mode(False), torch.enable_grad(), Kernels() as kernels:
        results(fused, twin(candidate.block, lambda t: t.detach().clone()), x, random_like(x, 1))
    return kernels


def random_input(candidate: Candidate) -> Tensor:
    weight = next(candidate.block.parameters())
    shape = candidate.family.sample(candidate.block)
    return random_like(weight.detach().new_empty(shape), seed=0)


def with_dropout_note(row: Row, block: nn.Module) -> Row:
    if row.reason or not any(isinstance(m, nn.Dropout) and m.p > 0 for m in block.modules()):
        return row
    sentence = "in training, with dropout in force, its own forward runs: the ops draw none"
    return replace(row, reason="DROPOUT_TRAINING", sentence=sentence)


def _idle(row: Row, kernels: Kernels, device: str, min_gain: float) -> Row:
    """Swapped all the same, for the day it moves to a device with kernels, but idle on this one."""
    why = f"no kernel but the reference serves it on {device} ({kernels.refusals()})"
    if min_gain > 1:
        return replace(row, reason="NOT_FASTER", sentence=why)
    sentence = f"{why}; there its own forward runs, and no gain is to be expected"
    return replace(
        row, action="replaced", backend="original", reason="NOT_FASTER", sentence=sentence
    )


def facts_of(row: Row, backend: str, block: nn.Module) -> dict:
    """What a block remembers of its judgement: plain values, so that any pickle can hold them."""
    device = next(block.parameters()).device.type
    idle = row.action == "replaced" and row.backend == "original"
    return {
        "backend": backend,
        "device": device,
        "idle_on": device if idle else None,
        "row": asdict(row),
    }


def _mismatch(agreement: Agreement) -> str:
    return (
        f"{agreement.worst} is off by {agreement.error:.1e}, "
        f"allowed is {agreement.allowed:.1e}; see shiftmlp.testing for the rule"
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
