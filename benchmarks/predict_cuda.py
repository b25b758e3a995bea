"""Predicts how close the kernels for sm_90a come to their floor on an H200, from their tiles.

    python benchmarks/predict_cuda.py [OP ...] [--batch N]

No GPU is needed. Every launch has the clocks that its busiest block spends in each pipe: tensor
cores (at a library's rate), GELU, shared memory and the L2. The prediction is optimistic: all pipes
and the memory at the same time, so that the slowest decides. "apart" is one after another. Blocks
are persistent, one on each multiprocessor.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from predict import CLOCK, GELU_CLOCKS, H200, LAUNCH_US, MULTIPROCESSORS, up  # noqa: E402

from shiftmlp.bench.cases import Case, select  # noqa: E402
from shiftmlp.bench.report import _aligned  # noqa: E402

TENSOR = H200.rate / MULTIPROCESSORS / CLOCK  # operations of a multiprocessor in a clock
SHARED = 128  # bytes in a clock (CUDA programming guide: 32 banks of 4)
# Bytes in a clock. Assumed: what Chips and Cheese (2023) measured on an H100 PCIe, whose clock is
# lower and which has fewer multiprocessors.
L2 = 5.5e12 / MULTIPROCESSORS / CLOCK
LINE = 128  # bytes of a row of shared memory: 64 values


@dataclass(frozen=True)
class Launch:
    """``parts`` of the work, each of which takes a block so many clocks of every pipe."""

    kernel: str
    parts: int
    clocks: dict[str, float]
    nbytes: int
    at_once: int = MULTIPROCESSORS

    def times_us(self) -> dict[str, float]:
        """Of every pipe and of the memory."""
        busiest = math.ceil(self.parts / self.at_once)
        pipes = {name: 1e6 * busiest * clocks / CLOCK for name, clocks in self.clocks.items()}
        return pipes | {"memory": 1e6 * self.nbytes / H200.bandwidth}

    def bound(self) -> str:
        times = self.times_us()
        return max(times, key=times.get)

    def predicted_us(self) -> float:
        return max(self.times_us().values()) + LAUNCH_US

    def apart_us(self) -> float:
        return sum(self.times_us().values()) + LAUNCH_US


def wgmma(steps: int, n: int, a_in_registers: bool) -> tuple[float, float]:
    """Clocks of the tensor cores and of shared memory for products of 64 x 16 by 16 x n."""
    operands = 16 * n * 2 + (0 if a_in_registers else 64 * 16 * 2)
    return steps * 2 * 64 * 16 * n / TENSOR, steps * operands / SHARED


def a_pass(kernel: str, nbytes: int) -> Launch:
    return Launch(kernel, MULTIPROCESSORS, {}, nbytes)


def tokens_of_tiles(S: int, T: int, mlp: bool) -> tuple[int, int, int]:
    """Of x, of y, and how many of y: as csrc/cuda/token_*_sm90.cu choose."""
    if max(S, T) <= 64:
        return 64, 64, 1
    if max(S, T) <= (144 if mlp else 128):
        return (144, 144, 1) if mlp else (128, 128, 1)
    if S <= 208 and T <= (200 if mlp else 208):
        return 208, 200 if mlp else 208, 1
    return 256, 128, math.ceil(T / 128)


def token_linear(B: int, S: int, C: int) -> list[Launch]:
    depth, tokens, down = tokens_of_tiles(S, S, mlp=False)
    pairs = math.ceil(B * math.ceil(C / 64) / 2) * down
    tensor, shared = wgmma(depth // 16, tokens, a_in_registers=True)
    moved = 2 * (depth + tokens) * LINE / SHARED  # by TMA, and to or from registers
    clocks = {"tensor": 2 * tensor, "shared": 2 * (shared + moved)}
    return [Launch("token_linear_sm90_kernel", pairs, clocks, 2 * (2 * B * S * C + S * S))]


def token_mlp(B: int, S: int, C: int, D: int) -> list[Launch]:
    depth, tokens, down = tokens_of_tiles(S, S, mlp=True)
    pairs, chunks = math.ceil(B * math.ceil(C / 64) / 2) * down, math.ceil(D / 64)
    products = wgmma(depth // 16, 64, True), wgmma(4, tokens, True)
    tensor, shared = (2 * chunks * sum(clocks) for clocks in zip(*products, strict=True))
    weights = chunks * (depth + up(tokens, 16)) * LINE  # once for both warpgroups
    clocks = {
        "tensor": tensor,
        "gelu": 2 * 64 * chunks * 64 * GELU_CLOCKS,
        "shared": shared + (weights + 4 * (depth + tokens) * LINE) / SHARED,
        "L2": weights / 2 / L2,  # half of them by each of two blocks
    }
    return [
        a_pass("moments_kernel", B * S * (2 * C + 8)),
        Launch("token_mlp_sm90_kernel", pairs, clocks, 2 * (2 * B * S * C + 2 * S * D) + 8 * B * S),
    ]


def tiles_of_product(M: int, N: int, images: int = 1) -> tuple[int, int, int]:
    """Columns of a part, blocks of a cluster and all their parts, as csrc/cuda/product_sm90.cu
    chooses."""

    def parts(columns, cluster):
        return math.ceil(M / columns) * math.ceil(N / (128 * cluster)) * cluster * images

    def most(columns, cluster):
        return math.ceil(parts(columns, cluster) / MULTIPROCESSORS)

    columns = min((256, 192, 128), key=lambda columns: most(columns, 1) * (columns + 32))
    cluster = 2 if N > 128 and most(columns, 2) <= most(columns, 1) else 1
    return columns, cluster, parts(columns, cluster)


def tiles_of_norm(M: int, N: int) -> tuple[int, int, int, int, int]:
    """The same with a norm's adjoint: columns, blocks of a cluster across and down, all parts, and
    how many run at the same time, in parts of a device as they are assumed."""

    def tile(columns):
        across = math.ceil(M / columns)
        down = 2 if N > 128 and across <= 4 else 1
        blocks = across * down
        at_once = sum(n // blocks for n in 6 * (16,) + 2 * (18,)) * blocks
        return columns, across, down, math.ceil(N / (128 * down)) * blocks, at_once

    tiles = (tile(columns) for columns in (256, 192, 128) if M <= 8 * columns)
    return min(tiles, key=lambda t: math.ceil(t[3] / t[4]) * (t[0] + 32))


def product(
    M: int, N: int, K: int, images: int = 1, *, splits: int = 0, one_weight: bool = False,
    gelu: bool = False, read: int = 0, written: int = 1, norm: bool = False,
) -> Launch:  # fmt: skip
    """``one_weight``: all images share the rows; ``read`` and ``written``: tensors like the result
    that the epilogue reads, and that it writes; ``norm``: it ends in a norm's adjoint."""
    if norm:
        columns, across, cluster, parts, at_once = tiles_of_norm(M, N)
    else:
        columns, cluster, parts = tiles_of_product(M, N, splits or images)
        across, at_once = 1, MULTIPROCESSORS
    steps = up(K, 64) // 16 * images / (splits or images)
    tensor, shared = (2 * clocks for clocks in wgmma(steps, columns, a_in_registers=False))
    landed = steps / 4 * (128 + columns) * LINE
    terms = K * images / (splits or images)  # TMA fills a chunk beyond them with zeros
    loaded = terms * 2 * (128 / across + columns / cluster)  # other blocks have the rest sent
    stored = 128 * columns * (4 if splits else 2 * written)
    clocks = {
        "tensor": tensor,
        "gelu": gelu * 128 * columns * GELU_CLOCKS,
        "shared": shared + (landed + (0 if splits else 2 * stored)) / SHARED,
        "L2": (loaded + stored + 128 * columns * 2 * (read + norm)) / L2,  # x twice
    }
    operands = 2 * ((1 if one_weight else images) * N * K + images * M * K)
    results = splits * N * M * 4 if splits else images * N * M * 2 * (read + written)
    return Launch("product_sm90_kernel", parts, clocks, operands + results, at_once)


def weight_gradient(M: int, N: int, K: int, images: int = 1) -> list[Launch]:
    """In parts as csrc/cuda/operands.h chooses, and their sum."""
    blocks, terms = math.ceil(M / 256) * math.ceil(N / 128), images * K
    most = min(math.ceil(4 * MULTIPROCESSORS / blocks), terms // 256)

    def cost(splits):
        waves = math.ceil(blocks * splits / MULTIPROCESSORS)
        return waves * math.ceil(terms / splits) + splits * M * N // 6000

    splits = min(range(1, max(most, 1) + 1), key=cost)
    parts = product(M, N, K, images, splits=splits)
    return [parts, a_pass("sum_parts_kernel", M * N * (4 * splits + 2))]


def normed(rows: int, C: int) -> list[Launch]:
    return [a_pass("moments_kernel", rows * (4 * C + 8))]


def norm_backward(rows: int, C: int) -> Launch:
    return a_pass("norm_backward_kernel", rows * (6 * C + 8))


def channel_mlp(B: int, S: int, C: int, D: int) -> list[Launch]:
    rows = B * S
    return [*normed(rows, C), product(D, rows, C, gelu=True), product(C, rows, D, read=1)]


def shift_mlp(B: int, H: int, W: int, C: int, D: int) -> list[Launch]:
    return channel_mlp(B, H * W, C, D)


def shift_linear(B: int, H: int, W: int, C: int) -> list[Launch]:
    return [product(C, B * H * W, C)]


def token_linear_backward(B: int, S: int, C: int) -> list[Launch]:
    return [
        *weight_gradient(S, S, C, B),
        a_pass("sum_columns_kernel", 2 * B * S * C),
        product(C, S, S, B, one_weight=True),
    ]


def token_mlp_backward(B: int, S: int, C: int, D: int) -> list[Launch]:
    return [
        *normed(B * S, C),
        product(C, D, S, B, one_weight=True, gelu=True, written=2),
        *weight_gradient(D, S, C, B),
        a_pass("sum_columns_kernel", 2 * B * S * C),
        product(C, D, S, B, one_weight=True, gelu=True, read=1),
        *weight_gradient(S, D, C, B),
        a_pass("sum_columns_kernel", 2 * B * D * C),
        product(C, S, D, B, one_weight=True),
        norm_backward(B * S, C),
    ]


def channel_mlp_backward(B: int, S: int, C: int, D: int) -> list[Launch]:
    rows = B * S
    return [
        *normed(rows, C),
        product(D, rows, C, gelu=True, written=2),
        a_pass("norm_backward_kernel", 2 * rows * C),  # of the bias
        *weight_gradient(D, C, rows),
        product(D, rows, C, gelu=True, read=1),
        *weight_gradient(C, D, rows),
        a_pass("norm_backward_kernel", 2 * rows * D),
        product(C, rows, D, read=1, norm=True),
        *2 * [a_pass("norm_backward_kernel", rows // 64 * C * 4)],  # sums of the norm's gradients
    ]


def shift_mlp_backward(B: int, H: int, W: int, C: int, D: int) -> list[Launch]:
    """As the same without a shift, whose adjoint and slope are passes of their own."""
    moved = B * H * W * D
    return [
        *channel_mlp_backward(B, H * W, C, D),
        a_pass("spatial_shift_kernel", 4 * moved),
        a_pass("activation_backward_kernel", 6 * moved),
    ]


def shift_linear_backward(B: int, H: int, W: int, C: int) -> list[Launch]:
    rows = B * H * W
    return [
        a_pass("norm_backward_kernel", 2 * rows * C),
        a_pass("spatial_shift_kernel", 4 * rows * C),
        *weight_gradient(C, C, rows),
        product(C, rows, C),
        a_pass("spatial_shift_kernel", 4 * rows * C),
    ]


OPS = {f.__name__: f for f in (token_linear, token_mlp, channel_mlp, shift_mlp, shift_linear)}
BACKWARD = {name: globals()[f"{name}_backward"] for name in OPS}
COLUMNS = (
    "op", "case", "direction", "launch", "parts", "waves", "bound by", "predicted us", "apart us",
    "floor us", "predicted", "apart",
)  # fmt: skip


def table(case: Case, batch: int, direction: str) -> list[tuple[str, ...]]:
    """A line for every launch, then the op's."""
    launches = (OPS if direction == "fwd" else BACKWARD)[case.op](batch, **dict(case.sizes))
    floor = H200.floor(case.flops(batch, direction), case.bytes(batch, direction, 2))
    first = case.op, case.name, direction
    lines = [
        (
            *first, one.kernel, str(one.parts), f"{one.parts / one.at_once:.2f}", one.bound(),
            f"{one.predicted_us():.1f}", f"{one.apart_us():.1f}", "", "", "",
        )
        for one in launches
    ]  # fmt: skip
    predicted = sum(one.predicted_us() for one in launches)
    apart = sum(one.apart_us() for one in launches)
    shares = (f"{floor / time:.0%}" for time in (predicted, apart))
    whole = f"{predicted:.1f}", f"{apart:.1f}", f"{floor:.1f}"
    return [*lines, (*first, "all", "", "", "", *whole, *shares)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ops", nargs="*", metavar="OP", choices=[*OPS, []])
    parser.add_argument("--batch", type=int, default=256)
    options = parser.parse_args()
    cases = [case for case in select(options.ops) if case.op in OPS]
    print(f"PREDICTED for an H200, bfloat16, batch {options.batch}")
    ways = "fwd", "bwd"
    lines = [line for way in ways for case in cases for line in table(case, options.batch, way)]
    print("\n".join(_aligned([COLUMNS, *lines])))


if __name__ == "__main__":
    main()
