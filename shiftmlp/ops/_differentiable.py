"""An op with a gradient: its backward op, and the one place where PyTorch is told of it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._C import _any_requires_grad, _AutoDispatchBelowAutograd
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from ._op import Op, never


class DifferentiableOp(Op):
    """An op with a gradient for every tensor that it takes.

    Makes ``self.backward``, the op ``<op>_backward(dy, <the arguments it needs>, needs, backend)``,
    and ``self.function``, the autograd Function that both doors (the op and ``.apply``) share.

    Args:
        function: the autograd Function's name.
        gemms: the op's matrix products, for FLOP counts: the same arguments by name give a list of
            ``(weight's name, multiply-adds, names whose gradient needs the product's input's)``.
        forgets: what the backward does without.
        fake_backward: metadata of the backward's result, where it cannot be told from the tensors.
    """

    def __init__(
        self, schema, fake, *, function, gemms, batched, autocast=(), forgets=("residual",),
        fake_backward=None,
    ):  # fmt: skip
        super().__init__(schema, fake, _forward_flops(gemms), batched, autocast)
        self.tensors = [name for kind, name in self.arguments if kind.startswith("Tensor")]
        self.saved = [name for name in self.names[:-1] if name not in forgets]
        self._saved_at = [self.names.index(name) for name in self.saved]
        self.asked = [name for name in self.tensors if name != "residual"]
        kinds = {name: kind for kind, name in self.arguments}
        kept = "".join(f"{kinds[name]} {name}, " for name in self.saved)
        # The reference made of other ops, which is faster, for PyTorch to differentiate as well;
        # None: it stands.
        self.composed: Callable | None = None
        self.backward = Op(
            f"{self.name}_backward(Tensor dy, {kept}bool[] needs, str backend) -> Tensor[]",
            fake_backward or self._fake_backward,
            _backward_flops(gemms, self.asked),
        )
        text = f"The gradient of ``shiftmlp::{self.name}``: ``apply({', '.join(self.names)})``."
        methods = _forward_and_backward(self) | {"__doc__": text}
        self.function = type(function, (torch.autograd.Function,), methods)
        # The same methods for use below the dispatcher, where torch.func has peeled its own level.
        self._single_level = type(function, (_SingleLevelFunction,), methods)

    def choose(self, backend: str, *inputs) -> Callable:
        launch = super().choose(backend, *inputs)
        is_reference = launch is self.kernels["reference"][0]
        return self.composed if backend == "auto" and is_reference and self.composed else launch

    def _autograd(self, *args):
        if forward_ad._current_level >= 0:
            self._refuse_tangents(args)
        *inputs, backend = args
        differentiated = torch.is_grad_enabled() and _any_requires_grad(*args)
        watched = torch._C._len_torch_dispatch_stack() != 0
        if (
            backend == "auto"
            and (torch.compiler.is_compiling() or (differentiated and not watched))
            and self._is_left_to_pytorch(inputs, differentiated)
        ):
            compiled = torch.compiler.is_compiling() or self.composed is None
            return (self.kernels["reference"][0] if compiled else self.composed)(*inputs)
        if differentiated:
            if torch._C._are_functorch_transforms_active():
                with enable_single_level_autograd_function():
                    return self._single_level.apply(*args)
            return self._single_level.apply(*args)
        with _AutoDispatchBelowAutograd():
            return self.overload(*args)

    def _is_left_to_pytorch(self, inputs, differentiated: bool) -> bool:
        """Whether the reference serves best as plain PyTorch code, which keeps what our backward
        would compute again, and which torch.compile fuses with its neighbours."""

        def backward_is_slower(backend: str) -> bool:
            _, _, slower = self.backward.kernels[backend]
            # The result's gradient is not there yet; it will be of the dtype of what is mixed.
            return slower(inputs[0], *(inputs[i] for i in self._saved_at), ()) is not None

        passes_over = backward_is_slower if differentiated else never
        return self.fastest(*inputs, passes_over=passes_over) == "reference"

    def _fake_backward(self, dy, *args):
        *saved, needs = args
        given = dict(zip(self.saved, saved, strict=True))
        tensors = [given[name] for name in self.asked]
        return [t.new_empty(t.shape) for t, need in zip(tensors, needs, strict=True) if need]

    def gradients(self, ctx_needs: dict[str, bool], dy: Tensor, given: dict, backend: str):
        """The gradient of every argument, in order; None where none is wanted."""
        needs = [ctx_needs[name] for name in self.asked]
        found = {"residual": dy} if ctx_needs.get("residual") else {}
        if any(needs):
            inputs = (dy, *(given[name] for name in self.saved), needs)
            if torch.is_grad_enabled() and _any_requires_grad(*inputs):
                # A second derivative is wanted: PyTorch differentiates the written-out adjoint.
                grads = self.backward.kernels["reference"][0](*inputs)
            else:
                grads = self.backward.call(*inputs, backend)
            wanted = [name for name in self.asked if ctx_needs[name]]
            found |= zip(wanted, grads, strict=True)
        return tuple(found.get(name) for name in self.names)


def _forward_and_backward(op: DifferentiableOp) -> dict[str, staticmethod]:
    """The methods of ``op``'s autograd Function: where PyTorch is told its gradient."""
    saved_tensors = [name for name in op.saved if name in op.tensors]
    saved_values = [name for name in op.saved if name not in op.tensors]
    where = {name: index for index, name in enumerate(op.names)}

    def forward(ctx, *args):
        with _AutoDispatchBelowAutograd():
            output = op.call(*args)
        ctx.save_for_backward(*(args[where[name]] for name in saved_tensors))
        ctx.values = [args[where[name]] for name in saved_values]
        ctx.backend = args[-1]
        return output

    def backward(ctx, dy):
        given = dict(zip(saved_tensors, ctx.saved_tensors, strict=True))
        given |= zip(saved_values, ctx.values, strict=True)
        needs = dict(zip(op.names, ctx.needs_input_grad, strict=True))
        return op.gradients(needs, dy, given, ctx.backend)

    return {"forward": staticmethod(forward), "backward": staticmethod(backward)}


def _forward_flops(gemms: Callable) -> Callable:
    return lambda **given: sum(2 * macs for _, macs, _ in gemms(**given))


def _backward_flops(gemms: Callable, asked: list[str]) -> Callable:
    """A product for each weight's gradient and each input's; recomputation is not counted."""

    def count(dy, needs, **given) -> int:
        wanted = {name for name, need in zip(asked, needs, strict=True) if need}
        products = gemms(**given)
        return sum(
            2 * macs * ((weight in wanted) + (not wanted.isdisjoint(upstream)))
            for weight, macs, upstream in products
        )

    return count
