"""Registers the compiled kernels, and what every one of them asks of its arguments."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _native
from ._differentiable import DifferentiableOp
from ._math import allows_tf32, at_least_float32
from ._op import Op, never

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PRODUCTS = (torch.bfloat16, torch.float16, torch.float32)  # the dtypes of those of csrc/cuda
SMALL = 2**18  # numbers in x
SMALL_FOR_THREAD, FEW = 2**16, 256  # the same for each thread, and channels of all images
HALVES = (torch.bfloat16, torch.float16)
WITH_AMX = (torch.bfloat16,)  # won beside lacks_amx
MATRICES = {"x", "u", "v", "dy", "residual", "weight", "w1", "w2"}


def attach(
    op: Op, backend: str, launch: Callable, refuses: Callable = never, dtypes=None,
    slower: Callable = never,
) -> None:  # fmt: skip
    """Makes ``launch`` the kernel of ``op`` on "cpu" or "cuda", where its library can run."""

    tensors = [(i, name) for i, (kind, name) in enumerate(op.arguments) if "Tensor" in kind]

    def refused(*inputs) -> str | None:
        device = inputs[0].device
        if reason := not_there(backend, op.names[0], device):
            return reason
        for i, name in tensors:
            tensor = inputs[i]
            if tensor is not None:
                if tensor.device != device:
                    return f"{name} is on {tensor.device}, {op.names[0]} on {device}"
                if tensor.layout != torch.strided or tensor.is_quantized:
                    return f"{name} must be dense, got {tensor.dtype} in {tensor.layout}"
        return refuses(*inputs)

    op.kernel(backend, refused, slower, dtypes)(launch)


def not_there(backend: str, name: str, device: torch.device) -> str | None:
    """Why the library of ``backend`` cannot run on the device of tensor ``name``, or None."""
    if reason := _native.why_not(backend):
        return reason
    if device.type != backend:
        return f"{name} must be on {backend}, got {device}"
    return _native.lacks_image(device) if backend == "cuda" else None


def refuses_mixture(*inputs) -> str | None:
    """float64 is summed by an engine of its own."""
    dtypes = {arg.dtype for arg in inputs if isinstance(arg, Tensor)}
    if len(dtypes) > 1 and torch.float64 in dtypes:
        return f"float64 must not mix with other dtypes, got {sorted(map(str, dtypes))}"
    return None


def refuses_in_products(op: Op) -> Callable:
    """What the products of csrc/cuda cannot take: their matrices are of one dtype."""
    matrices = [(i, name) for i, name in enumerate(op.names) if name in MATRICES]

    def refuses(first: Tensor, *inputs) -> str | None:
        inputs = first, *inputs
        for i, name in matrices:
            tensor = inputs[i]
            if tensor is not None and tensor.dtype != first.dtype:
                return f"{name} must be {first.dtype} like {op.names[0]}, got {tensor.dtype}"
            if tensor is not None and (rows := math.prod(tensor.shape[:-1])) >= 2**31:
                return f"{name} must have less than 2^31 rows, got {rows}"
            if tensor is not None and tensor.shape[-1] >= 2**31:
                return f"{name} must have less than 2^31 columns, got {tensor.shape[-1]}"
        if first.dtype == torch.float32 and not allows_tf32():
            return (
                f"{op.names[0]} in float32 is multiplied in TF32, which PyTorch must be told to "
                'allow: torch.backends.cuda.matmul.fp32_precision = "tf32"'
            )
        return refuses_mixture(*inputs)

    return refuses


def is_unproven(*inputs) -> str:
    """Of a CUDA kernel that has a rival on GPUs."""
    return "not yet proven on a GPU"


def loses(op: Op, limit: Callable = never, wins: tuple = ()) -> Callable:
    """The ``slower`` of a product, which competes with a library's. ``wins`` are the dtypes in
    which it was measured faster where the library uses AVX-512 or AMX as well; ``limit(dtype,
    *inputs)`` says what is left out everywhere."""

    def slower(*inputs) -> str | None:
        dtype = inputs[op.weight].dtype
        if dtype == torch.float64:
            return "float64 is there to check gradients, not to be fast"
        if reason := limit(dtype, *inputs):
            return reason
        engine = _native.cpu_engine()
        if engine == "plain":
            return "the kernels have no vector instructions for this processor"
        if not _rival_is_fast(dtype):
            return None
        if engine == "avx2":
            return f"not yet measured against PyTorch's own {dtype} products on this processor"
        if dtype not in wins:
            return f"measured: PyTorch, with AVX-512 or AMX as well, is faster in {dtype}"
        return None

    return slower


def recomputes(dtype: torch.dtype, *inputs) -> str | None:
    """Of a backward that computes again what PyTorch has kept."""
    avx512 = _native.cpu_engine().startswith("avx512")
    if dtype != torch.float32 or (avx512 and not _rival_is_fast(torch.float32)):
        return None
    return "measured: in float32 PyTorch, which keeps the product, is faster"


def is_small(dtype: torch.dtype, dy: Tensor, x: Tensor, *inputs) -> str | None:
    """Of a backward whose fixed costs count beside fast products."""
    counts = dtype == torch.float32 or (dtype == torch.bfloat16 and _native.cpu_engine() == "amx")
    if counts and x.numel() < SMALL:
        return f"measured: in {dtype} faster only from {SMALL} numbers in x on"
    return None


def lacks_amx(dtype: torch.dtype, *inputs) -> str | None:
    """Of what was measured to be faster with AMX, as PyTorch is, and not without."""
    if dtype == torch.bfloat16 and _native.cpu_engine() == "avx512_bf16":
        return "not measured where PyTorch's bfloat16 products are fast without AMX"
    return None


def is_small_for_threads(dtype: torch.dtype, dy: Tensor, x: Tensor, *inputs) -> str | None:
    """Of one that computes no product again, and whose threads share images and channels."""
    least = min(SMALL, SMALL_FOR_THREAD * torch.get_num_threads())
    if dtype == torch.float32 and x.numel() < max(least, FEW * x.shape[-2]):
        return (
            f"measured: in float32 faster only from {least} numbers in x and {FEW} channels of"
            " all images on"
        )
    return None


@functools.cache
def _rival_is_fast(dtype: torch.dtype) -> bool:
    """Whether PyTorch's own products have AVX-512, or vector instructions for 16 bits."""
    features = _native.cpu_features()
    avx512 = features.get("avx512f", False)
    if dtype == torch.float32:
        # MKL takes AVX-512 on Intel's processors alone.
        return avx512 and _native.cpu_vendor() != "amd"
    if dtype == torch.bfloat16:
        # Without instructions for it oneDNN says that it can, and takes four times as long.
        native = features.get("avx512bf16", False) if avx512 else True
        return native and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_fp16_supported()


def images(x: Tensor | None, axes: int = 2) -> Tensor | None:
    """x with its batch in one axis; a view where there is one."""
    if x is None or x.dim() == axes + 1:
        return x
    return x.reshape(math.prod(x.shape[:-axes]), *x.shape[-axes:])


def one_image(x: Tensor | None) -> Tensor | None:
    """x with all its positions in one axis, below a batch of 1."""
    return None if x is None else x.reshape(1, math.prod(x.shape[:-1]), x.shape[-1])


def attach_products(
    op: DifferentiableOp, forward: Callable, backward: Callable, slower: Callable,
    slower_backward: Callable, refusal_of: Callable = lambda op: never,
) -> None:  # fmt: skip
    """Makes ``forward(library, *inputs)`` and ``backward(library, gradients, dy, *saved)`` the
    kernels of ``op`` on "cpu" and "cuda"; the slower ones are asked on the CPU. ``refusal_of``, the
    op or its backward, is what both libraries refuse of it besides."""

    def attach_to(backend, refuses_of, dtypes, slower, slower_backward):
        library = getattr(torch.ops, f"shiftmlp_{backend}")
        refuses, refuses_backward = (
            either(refusal_of(each), refuses_of(each)) for each in (op, op.backward)
        )
        launch = functools.partial(forward, library)
        attach(op, backend, launch, refuses, dtypes, slower)
        launch = functools.partial(backward, library)
        attach_backward(op, backend, launch, refuses_backward, dtypes, slower_backward)

    attach_to("cpu", lambda each: refuses_mixture, FLOATS, slower, slower_backward)
    attach_to("cuda", refuses_in_products, PRODUCTS, is_unproven, is_unproven)


def either(*refusals: Callable) -> Callable:
    """The first reason."""
    return lambda *inputs: next(filter(None, (refuses(*inputs) for refuses in refusals)), None)


def attach_backward(
    op: DifferentiableOp,
    backend: str,
    launch: Callable,
    refuses: Callable,
    dtypes,
    slower: Callable,
) -> None:
    """Makes ``launch(gradients, dy, *saved)`` the kernel of ``op``'s backward on ``backend``.

    It fills ``gradients``, in the order of the tensors, None where none is wanted.
    """

    def backward(dy: Tensor, *args) -> list[Tensor]:
        *saved, needs = args
        given = dict(zip(op.saved, saved, strict=True))
        gradients = [
            _gradient(op, name, given[name], dy.numel() == 0) if need else None
            for name, need in zip(op.asked, needs, strict=True)
        ]
        if dy.numel():
            into = zip(op.asked, gradients, strict=True)
            launch([images(g) if name in op.batched else g for name, g in into], dy, *saved)
        return [g for g in gradients if g is not None]

    attach(op.backward, backend, backward, refuses, dtypes, slower)


def _gradient(op: DifferentiableOp, name: str, tensor: Tensor, empty: bool) -> Tensor:
    # Data and products keep their dtype; norms and scales sum in float32 at least.
    kept = name in op.batched or name in op.autocast
    dtype = tensor.dtype if kept else at_least_float32(tensor.dtype)
    make = torch.zeros_like if empty else torch.empty_like
    return make(tensor, dtype=dtype, memory_format=torch.contiguous_format)
