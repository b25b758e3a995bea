"""The kernels of csrc/cuda that do no products, as cuda_model.py counts them."""

import math

from cuda_model import Launch, Way

SPLIT_FOR = 132  # multiprocessors, as csrc/cuda/operands.h splits sums: kBlocks


def rows_pass(way: Way, kernel: str, rows: int, C: int, nbytes: int, region="row", width=512):
    """A warp has a row of C columns, ``width`` of them at a time."""
    launch = Launch(way, f"{kernel}<{way.type}>", math.ceil(rows / 8), nbytes)
    launch.run(region, 8 * C / width)
    return launch


def moments(way: Way, rows: int, C: int, norms: bool = False) -> Launch:
    """Of every row; ``norms``: and the norm by them."""
    nbytes = rows * (C * way.item * (1 + norms) + 8)
    launch = rows_pass(way, "norm_kernel", rows, C, nbytes, "moments", 1024)
    if norms:
        launch.run("norm", 8 * C / 1024)
    return launch


def norm(way: Way, rows: int, C: int) -> Launch:
    return rows_pass(way, "norm_kernel", rows, C, 2 * rows * C * way.item, "norm", 1024)


def activation_backward(way: Way, rows: int, C: int) -> Launch:
    return rows_pass(way, "activation_backward_kernel", rows, C, 3 * rows * C * way.item)


def parts_of(work: int, least: int, blocks: int) -> int:
    """csrc/cuda/operands.h"""
    return max(1, min(2 * SPLIT_FOR // max(blocks, 1), work // least))


def sum_parts(way: Way, n: int, count: int, item: int = 4) -> Launch:
    launch = Launch(way, "sum_parts_kernel", math.ceil(n / 32), n * (4 * count + item))
    launch.run("parts", count / 8)
    return launch


def sum_columns(way: Way, B: int, S: int, C: int, tensors: int = 1) -> list[Launch]:
    """The gradient of a bias over tokens; of a product of two ``tensors``."""
    across = math.ceil(S / 8)
    parts = parts_of(B, 1, across)
    nbytes = tensors * B * S * C * way.item
    launch = Launch(way, f"sum_columns_kernel<{way.type}>", parts * across, nbytes)
    launch.run("row" if tensors == 1 else "product", 8 * B / parts * C / 1024)
    return [launch, sum_parts(way, S, parts, way.item)]


def norm_backward(
    way: Way, rows: int, C: int, means=True, sums=2, tensors: int = 3, floats: bool = False
) -> list[Launch]:
    """The adjoint, and ``sums`` over rows; of fewer ``tensors`` than three, those of their product
    alone. ``floats``: they are float32."""
    type_, item = ("float", 4) if floats else (way.type, way.item)
    strips = math.ceil(C / 2048)
    parts = parts_of(rows, 16, strips)
    nbytes = rows * (C * tensors * item + 8)
    launch = Launch(way, f"norm_backward_kernel<{type_}>", parts * strips, nbytes)
    each = rows / launch.parts
    if means and tensors > 2:
        launch.run("means", each * C / 512)
    at_once = 4 // item  # rows that a thread has under way
    launch.run(("sums", "products", "row")[tensors - 1], each / at_once * C / 256)
    return [launch, *[sum_parts(way, C, parts) for _ in range(sums)]]


def spatial_shift(way: Way, B: int, H: int, W: int, C: int, backward: bool = False) -> Launch:
    """The adjoint of "keep" adds up."""
    words = C * way.item // 16
    tiles, x = math.ceil(words / 256), min(words, 256)
    y = min(W, 256 // x)
    adjoint = f"spatial_shift_keep_backward_kernel<{way.type}, Bits128>"
    kernel = adjoint if backward else "spatial_shift_kernel<Bits128>"
    launch = Launch(way, kernel, B * H * tiles, 2 * B * H * W * C * way.item)
    launch.run("pixels", math.ceil(x * y / 32) * math.ceil(W / (4 * y)))
    return launch
