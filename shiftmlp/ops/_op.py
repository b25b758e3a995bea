"""An op is one contract (schema, fake, gradient) and several kernels that fulfil it.

Each kernel says itself what it cannot take: its ``refuses`` returns the reason, or None. The first
kernel in PREFERENCE without a reason runs; if all have one, the error tells every reason. A kernel
that would run but lose to the reference says so in ``slower``, which only "auto" asks.

The gradient of an op is an op as well, ``<op>_backward``, with kernels of its own. It takes the
gradient of the result, the inputs, and which of the tensors need a gradient; it returns those.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor
from torch._C import _any_requires_grad, _AutoDispatchBelowAutograd, _ExcludeDispatchKeyGuard
from torch.autograd import forward_ad

from ._flops import register_flops

PREFERENCE = ("cuda", "triton", "cpu", "reference")
# What "auto" has to ask; the others refuse the device. Triton's interpreter is never chosen.
ON_A_GPU, ELSEWHERE = ("cuda", "triton", "reference"), ("cpu", "reference")
# Arguments that are what they seem: a subclass of Tensor may want to see the op.
PLAIN = frozenset((Tensor, torch.nn.Parameter, str, float, int, bool, list, type(None)))
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
        # Where the first product's weight stands, whose dtype is that of the product.
        self.weight = next((i for i, n in enumerate(self.names) if n in ("weight", "w1")), None)
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
        """The op as functions call it: past PyTorch's dispatcher where that has nothing to do.

        The way through it is Python twice over, and half of the cost of a call.
        """
        if (
            torch.compiler.is_compiling()
            or forward_ad._current_level >= 0
            or torch._C._are_functorch_transforms_active()
            or torch._C._len_torch_dispatch_stack()
            or torch._C._is_any_autocast_enabled()
            or torch.autograd.profiler._is_profiler_enabled
            or not PLAIN.issuperset(map(type, args))
        ):
            return self.overload(*args)
        if torch.is_grad_enabled() and _any_requires_grad(*args):
            return self._autograd(*args)
        return self(*args)

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
        if backend == "auto":
            backend = self.fastest(*inputs)
        elif reason := self.refusal(backend, *inputs):
            raise NotImplementedError(f"{backend} cannot run {self.name}: {reason}")
        return self.kernels[backend][0]

    def fastest(self, *inputs, passes_over: Callable = never) -> str:
        """The backend that "auto" means for these inputs, of those it does not pass over."""
        for name in ON_A_GPU if inputs[0].is_cuda else ELSEWHERE:
            if name in self.kernels and not passes_over(name):
                _, refuses, slower = self.kernels[name]
                # What is slower mostly knows so at once; what refuses has looked at every tensor.
                if slower(*inputs) is None and refuses(*inputs) is None:
                    return name
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
