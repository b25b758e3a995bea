"""Tensors beside memory that nobody may touch, and a program that runs every kernel on such.

``python tests/guarded.py BACKEND SIDE`` places every tensor of a call, also each that is made in
it, so that it begins or ends ("begin", "end") at an inaccessible page: an access beyond kills the
process. Each case is printed before it runs. What is masked off is not accessed in Triton's
interpreter either: it tests each lane's mask before it follows the lane's address.
"""

import ctypes
import itertools
import mmap
import sys

import conftest  # noqa: F401  switches the interpreter on
import torch
from samples import SAMPLES, convert, randn
from test_kernels import expanded, row_pitch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from shiftmlp.ops import OPS

LIBC = ctypes.CDLL(None, use_errno=True)
PAGE, PROT_NONE = mmap.PAGESIZE, 0
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def span(t: Tensor) -> int:
    """Elements from the first of ``t`` to its last."""
    steps = ((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return 1 + sum(steps) if t.numel() else 0


def moved(t: Tensor, memory: Tensor) -> Tensor:
    """``t`` with its strides in ``memory``, a vector of its span."""
    memory.copy_(t.as_strided(memory.shape, (1,)))
    return memory.as_strided(t.shape, t.stride())


def guarded(t: Tensor, side: str) -> Tensor:
    """A copy of ``t`` that begins or ends at an inaccessible page."""
    if t.numel() == 0:
        return t
    size = span(t) * t.itemsize
    room = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, room + 2 * PAGE)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (first, first + PAGE + room):
        if LIBC.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE + (room - size if side == "end" else 0)
    return moved(t, torch.frombuffer(memory, dtype=t.dtype, count=span(t), offset=offset))


class Placing(TorchDispatchMode):
    """Passes every tensor that PyTorch makes, for Python or for our C++, through ``place``."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "shiftmlp_cpu":
            with self:  # what it makes comes here as well
                return func.redispatch(CPU, *args, **kwargs)
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        known = {t.untyped_storage()._cdata for t in inputs}
        return tree_map_only(
            Tensor,
            lambda t: t if t.untyped_storage()._cdata in known else self.place(t),
            func(*args, **kwargs),
        )


def with_196_tokens(sample):
    """Rows of 392 bytes in 16 bits, which no vector of 16 bytes divides."""
    return lambda make: sample(lambda *shape: make(*(196 if n == 49 else n for n in shape)))


def cases(backend: str):
    """``(name, op, args)``; in the interpreter, which is slow, dtypes and layouts take turns."""
    ways = list(
        itertools.product((torch.bfloat16, torch.float32), (torch.clone, row_pitch, expanded))
    )
    for op in OPS.values():
        samples = list(SAMPLES[op.name].items())
        if op.name.startswith("token"):
            samples.insert(0, ("196 tokens", with_196_tokens(samples[0][1])))
        for index, (name, sample) in enumerate(samples):
            for dtype, layout in ways if backend == "cpu" else [ways[index % len(ways)]]:
                args = convert(sample(randn(dtype)), layout)
                if op.refusal(backend, *args) is None:
                    yield f"{op.name} {name} {dtype} {layout.__name__}", op, args


if __name__ == "__main__":
    backend, side = sys.argv[1:]
    torch.manual_seed(0)
    for name, op, args in cases(backend):
        print(name, flush=True)
        with Placing(lambda t: guarded(t, side)):
            op(*convert(args, lambda t: guarded(t, side)), backend)
    print("no access outside")
