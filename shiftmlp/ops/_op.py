"""An op is one contract (schema, fake, gradient) and several kernels that fulfil it.

Each kernel says itself what it cannot take: its ``refuses`` returns the reason, or None. The first
kernel in PREFERENCE without a reason runs; if all have one, the error tells every reason. A kernel
that would run but lose to the reference says so in ``slower``, which only "auto" asks.

The gradient of an op is an op as well, ``<op>_backward``, with kernels of its own. It takes the
gradient of the result, the inputs, and which of the tensors need a gradient; it returns those.
"""

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor
from torch._C import _any_requires_grad, _AutoDispatchBelowAutograd, _ExcludeDispatchKeyGuard
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from ._flops import register_flops

PREFERENCE = ("cuda", "triton", "cpu", "reference")
AUTOCAST_KEYS = {"AutocastCPU": "cpu", "AutocastCUDA": "cuda"}

_library = torch.library.Library("shiftmlp", "DEF")


def never(*inputs) -> None:
    """The ``refuses`` of a kernel that takes everything."""


class Op:
    """One operator of ``torch.ops.shiftmlp``; its last argument names the backend.

    Args:
        schema: in torch.library's language.
        fake: the result's metadata, from the same arguments without the backend.
        flops: floating point operations of the matrix products, from the same arguments by name,
            tensors given as shapes.
        batched: the tensors that carry the batch in their leading dimensions; the rest are weights.
        autocast: the weights that autocast casts; products run in their dtype.
    """

    def __init__(self, schema: str, fake: Callable, flops: Callable, batched=(), autocast=()):
        self.name = schema.partition("(")[0]
        self.arguments = re.findall(r"(\S+) (\w+)[,)]", schema.partition("(")[2])
        self.names = [name for _, name in self.arguments]
        self.kernels: dict[str, tuple[Callable, Callable, Callable]] = {}
        self.dtypes: dict[str, tuple[torch.dtype, ...] | None] = {}
        self.flops, self.batched, self.autocast = flops, batched, autocast

        _library.define(schema)
        _library.impl(self.name, self, "CompositeExplicitAutograd")
        _library.impl(self.name, self._autograd, "Autograd")
        for key in AUTOCAST_KEYS:
            _library.impl(self.name, self._cast_for(key), key)
        torch.library.register_fake(
            f"shiftmlp::{self.name}", lambda *args: fake(*args[:-1]), lib=_library
        )
        torch.library.register_vmap(f"shiftmlp::{self.name}", self._vmap, lib=_library)
        packet = getattr(torch.ops.shiftmlp, self.name)
        register_flops(packet, self._count)
        self.overload = packet.default

    def call(self, *args):
        """The op as functions call it: past its Autograd kernel where that has nothing to do.

        That kernel is Python, and the way through it a fifth of the cost of a call.
        """
        if (
            torch.compiler.is_compiling()
            or forward_ad._current_level >= 0
            or torch._C._are_functorch_transforms_active()
            or (torch.is_grad_enabled() and _any_requires_grad(*args))
        ):
            return self.overload(*args)
        with _AutoDispatchBelowAutograd():
            return self.overload(*args)

    def __call__(self, *args):
        *inputs, backend = args
        return self.choose(backend, *inputs)(*inputs)

    def kernel(
        self, backend: str, refuses: Callable = never, slower: Callable = never, dtypes=None
    ):
        """Register the decorated function as this op's kernel on ``backend``.

        ``dtypes`` are those of the first tensor that it takes; None for all.
        """

        def refuses_dtype(first: Tensor, *inputs) -> str | None:
            if first.dtype not in dtypes:
                taken = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
                return f"{self.names[0]} must be {taken}, got {first.dtype}"
            return refuses(first, *inputs)

        def register(launch: Callable) -> Callable:
            self.kernels[backend] = launch, refuses_dtype if dtypes else refuses, slower
            self.dtypes[backend] = dtypes
            return launch

        return register

    def refusal(self, backend: str, *inputs) -> str | None:
        """Why ``backend`` cannot take these inputs, or None if it can."""
        if backend not in self.kernels:
            return "has no such kernel"
        return self.kernels[backend][1](*inputs)

    def choose(self, backend: str, *inputs) -> Callable:
        """``backend``'s kernel, or for "auto" the first that can and does not lose."""
        if backend != "auto":
            if reason := self.refusal(backend, *inputs):
                raise NotImplementedError(f"{backend} cannot run {self.name}: {reason}")
            return self.kernels[backend][0]
        for name in PREFERENCE:
            if name in self.kernels:
                launch, refuses, slower = self.kernels[name]
                if refuses(*inputs) is None and slower(*inputs) is None:
                    return launch
        told = "\n".join(f"  {name}: {reason}" for name, reason in self.explain(*inputs).items())
        raise NotImplementedError(f"no kernel of {self.name} takes these inputs:\n{told}")

    def explain(self, *inputs) -> dict[str, str | None]:
        """For every backend, why "auto" passes it over for these inputs, or None."""
        reasons = {}
        for name in PREFERENCE:
            reasons[name] = self.refusal(name, *inputs)
            if reasons[name] is None:
                reasons[name] = self.kernels[name][2](*inputs)
        return reasons

    def _autograd(self, *args):
        """Nothing is to be differentiated here; ``DifferentiableOp`` overrides this."""
        if forward_ad._current_level >= 0:
            self._refuse_tangents(args)
        if torch.is_grad_enabled() and _any_requires_grad(*args):
            raise NotImplementedError(
                f"{self.name} called on tensors that require a gradient has none of its own; "
                f"differentiate twice through {self.name.removesuffix('_backward')} instead"
            )
        with _AutoDispatchBelowAutograd():
            return self.overload(*args)

    def _refuse_tangents(self, args):
        # A custom op would drop the tangents of forward-mode AD without a word.
        for arg in args:
            if isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None:
                raise NotImplementedError(f"{self.name} has no forward-mode derivative")

    def _cast_for(self, key: str) -> Callable:
        """Products run in autocast's dtype; norms, scale and residual keep theirs, as in eager."""
        device = AUTOCAST_KEYS[key]
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
        cast = [name in self.autocast for name in self.names]

        def run(*args):
            dtype = torch.get_autocast_dtype(device)
            args = [
                arg.to(dtype) if chosen and arg is not None and arg.dtype != torch.float64 else arg
                for arg, chosen in zip(args, cast, strict=True)
            ]
            with _ExcludeDispatchKeyGuard(keys):
                return self.overload(*args)

        return run

    def _vmap(self, info, in_dims, *args):
        """The mapped dimension joins the batch; where a weight is mapped, one call for each."""
        mapped = dict(zip(self.names, in_dims, strict=True))
        if any(isinstance(dim, int) and name not in self.batched for name, dim in mapped.items()):
            return self._vmap_by_loop(info, in_dims, *args)
        given = []
        for name, arg in zip(self.names, args, strict=True):
            if name in self.batched and arg is not None:
                dim = mapped[name]
                fresh = dim is None
                arg = arg.expand(info.batch_size, *arg.shape) if fresh else arg.movedim(dim, 0)
            given.append(arg)
        return self.overload(*given), 0

    def _vmap_by_loop(self, info, in_dims, *args):
        results = [
            self.overload(
                *(
                    arg.select(dim, index) if isinstance(dim, int) else arg
                    for arg, dim in zip(args, in_dims, strict=True)
                )
            )
            for index in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
        return stacked, [0] * len(stacked)

    def _count(self, *args, out_shape=None, **kwargs) -> int:
        return self.flops(**dict(zip(self.names, args, strict=True)))


class DifferentiableOp(Op):
    """An op with a gradient for every tensor it takes, in all 64 shapes of ``needs_input_grad``.

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
        self.asked = [name for name in self.tensors if name != "residual"]
        kinds = {name: kind for kind, name in self.arguments}
        kept = "".join(f"{kinds[name]} {name}, " for name in self.saved)
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

    def _autograd(self, *args):
        if forward_ad._current_level >= 0:
            self._refuse_tangents(args)
        if torch.is_grad_enabled() and _any_requires_grad(*args):
            if torch._C._are_functorch_transforms_active():
                with enable_single_level_autograd_function():
                    return self._single_level.apply(*args)
            return self._single_level.apply(*args)
        with _AutoDispatchBelowAutograd():
            return self.overload(*args)

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
                grads = self.backward.overload(*inputs, backend)
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
            output = op.overload(*args)
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


def rows(shape, weight_shape) -> int:
    """Multiply-adds of a linear layer over one axis of ``shape``: numel / in * (out * in)."""
    return math.prod(shape) * weight_shape[0]
