"""The products of csrc/cuda, as cuda_model.py counts them."""

import math
from dataclasses import dataclass

from cuda_model import ISSUED, SHARED, Launch, Way
from cuda_passes import SPLIT_FOR, sum_parts
from predict import up

LINE = 128  # bytes of a row of shared memory on sm_90a: 64 values
WAITING = 2  # blocks of the portable product that a multiprocessor holds at once


def tiles_of_product(M: int, N: int, images: int, multiprocessors: int) -> tuple[int, int, int]:
    """Columns of a part, blocks of a cluster and all their parts, as csrc/cuda/product_sm90.cu
    chooses."""

    def clusters(columns, cluster):
        return math.ceil(M / columns) * math.ceil(N / (128 * cluster)) * images

    def most(columns, cluster):
        return math.ceil(clusters(columns, cluster) / (multiprocessors // cluster))

    columns = min((256, 192, 128), key=lambda columns: most(columns, 1) * (columns + 32))
    cluster = 2 if N > 128 and most(columns, 2) <= most(columns, 1) else 1
    return columns, cluster, clusters(columns, cluster) * cluster


def tiles_of_norm(M: int, N: int, images: int, device) -> tuple[int, int, int, int]:
    """The same where LayerNorm's adjoint follows: columns, blocks of a cluster beside and below one
    another, and all parts."""

    def tile(columns):
        across = math.ceil(M / columns)
        down = 2 if N > 128 and across <= 4 else 1
        return columns, across, down, math.ceil(N / (128 * down)) * across * down * images

    def time(tile):
        columns, across, down, parts = tile
        return math.ceil(parts / (across * down) / device.clusters(across * down)) * (columns + 32)

    return min((tile(columns) for columns in (256, 192, 128) if M <= 8 * columns), key=time)


@dataclass(frozen=True)
class Options:
    """Of a product: the side whose rows are summed over, of the columns and of the rows; whether
    all images share the columns or the rows; what becomes of the sums ("plain", "gelu", "slope",
    "inner": gelu and what entered it, or "norm": its adjoint, which for LayerNorm has means over a
    row); how many tensors like the result are read, how many sides are "turned" on their way in by
    a norm or a factor, and how many gathered by a shift."""

    layout: tuple[bool, bool] = (False, False)
    shared: tuple[bool, bool] = (False, False)
    kind: str = "plain"
    means: bool = False
    read: int = 0
    turned: int = 0
    gathered: int = 0

    @property
    def written(self) -> int:
        return 1 + (self.kind == "inner")

    def bytes(self, M: int, N: int, K: int, images: int, splits: int, item: int) -> int:
        columns, rows = (1 if one else images for one in self.shared)
        results = splits * 4 if splits else images * item * (self.read + self.written)
        return item * K * (columns * M + rows * N) + N * M * results


def product(way: Way, M: int, N: int, K: int, images: int = 1, splits: int = 0, **options):
    of = product_sm90 if way.hopper else product_portable
    return of(way, M, N, K, images, splits, Options(**options))


def product_sm90(way: Way, M, N, K, images, splits, options: Options) -> Launch:
    """csrc/cuda/product_sm90.cu: two warpgroups, and a warp or a warpgroup that loads."""
    device, parts_of = way.device, splits or images
    if options.means:
        columns, across, down, parts = tiles_of_norm(M, N, parts_of, device)
    else:
        columns, down, parts = tiles_of_product(M, N, parts_of, device.multiprocessors)
        across = 1
    finish = {"slope": 1, "norm": 2}.get(options.kind, int(options.layout[1]))
    layout = "NormedRows" if options.turned else _layout(options)
    kernel = f"product_sm90_kernel<__nv_bfloat16, {layout}, (Finish){finish}, {columns}>"
    nbytes, operations = options.bytes(M, N, K, images, splits, 2), 2 * M * N * K * images
    launch = Launch(way, kernel, parts, nbytes, operations, across * down, True)
    chunks = math.ceil(K / 64) * images / parts_of
    launch.multiply(chunks * 2 * 128 * columns * 64, 1.0)
    of_chunk = ISSUED[device.arch][launch.kernel]["chunk"]["mma"] / 4
    launch.run("chunk", 8 * chunks / of_chunk)
    launch.run("floats" if splits else "read" if options.kind == "plain" and options.read
               else options.kind, 8)  # fmt: skip
    if options.gathered:
        launch.run("gather", 4 * 8 * chunks)
    landed = chunks * (128 + columns) * LINE
    multiplied = chunks * 2 * (64 + columns) * LINE
    multiplied += options.turned * 8 * chunks * 4 * 2 * SHARED  # a norm's terms, for every warp
    stored = 128 * columns * (4 if splits else 2 * options.written)
    terms = K * images / parts_of  # TMA fills a chunk beyond them with zeros
    loaded = terms * 2 * (128 / across + columns / down)  # other blocks have the rest sent
    read = 128 * columns * 2 * options.read * (1 + options.means)  # x twice
    launch.move(landed + multiplied + (0 if splits else 2 * stored), loaded + stored + read)
    return launch


def product_portable(way: Way, M, N, K, images, splits, options: Options) -> Launch:
    """csrc/cuda/product.cu: tiles of 128 x 128 by 8 warps, or of 64 columns x 208 rows by 4."""

    def computed(shape):
        return up(M, shape[0]) * up(N, shape[1])

    tall, square = (64, 208, 32, 104), (128, 128, 64, 32)
    shape = tall if computed(tall) < computed(square) else square
    m, n, warp_m, warp_n = shape
    warps, parts_of = m * n // (warp_m * warp_n), splits or images
    parts = math.ceil(M / m) * math.ceil(N / n) * parts_of
    kernel = f"product_kernel<{way.type}, {_layout(options)}, Shape<{', '.join(map(str, shape))}> >"
    nbytes = options.bytes(M, N, K, images, splits, way.item)
    operations = 2 * M * N * K * images
    launch = Launch(way, kernel, parts, nbytes, operations, resident=WAITING)
    depth = 64 // way.item  # terms of a chunk, which are 64 bytes
    chunks = math.ceil(K / depth) * images / parts_of
    launch.multiply(chunks * 2 * m * n * depth, way.device.mma)
    launch.run("chunk", warps * chunks)
    pieces = math.ceil((m + n) / 2 * 4 / 32)  # of 16 bytes, by warps, of a side
    launch.run("side", options.turned * warps * chunks)
    launch.run("piece", options.turned * pieces * chunks)
    launch.run("gather", options.gathered * pieces * chunks)
    eights = m * n / 8 / 32
    launch.run(options.kind, eights)
    launch.run("read" if options.read and options.kind != "slope" else "store", eights / 4)
    copied = chunks * (m + n) * 64
    loaded = chunks * warps * (warp_m + warp_n) * 64
    turned = chunks * options.turned * 2 * (m + n) / 2 * 64
    stored = m * n * (4 if splits else way.item * options.written)
    read = m * n * way.item * options.read
    launch.move(copied + loaded + turned + m * n * 16, copied + stored + read)
    return launch


def _layout(options: Options) -> str:
    return "Layout<{}, {}>".format(*(str(one).lower() for one in options.layout))


def weight_gradient(way: Way, M: int, N: int, K: int, images: int = 1, **options) -> list[Launch]:
    """In parts as csrc/cuda/operands.h chooses, and their sum."""
    blocks, terms = math.ceil(M / 256) * math.ceil(N / 128), images * K
    most = min(math.ceil(4 * SPLIT_FOR / blocks), terms // 256)

    def cost(splits):
        waves = math.ceil(blocks * splits / SPLIT_FOR)
        return waves * math.ceil(terms / splits) + splits * M * N // 6000

    splits = min(range(1, max(most, 1) + 1), key=cost)
    parts = product(way, M, N, K, images, splits, **options)
    return [parts, sum_parts(way, M * N, splits, way.item)]


def tokens_of_tiles(S: int, T: int, mlp: bool) -> tuple[int, int, int]:
    """Of x, of y, and how many of y: as csrc/cuda/token_*_sm90.cu choose."""
    longest = max(S, T) if mlp else S
    if longest <= 64:
        tiles = 64, 64
    elif longest <= (144 if mlp else 128):
        tiles = (144, 144) if mlp else (128, 128)
    elif S <= 208 and (not mlp or T <= 200):
        tiles = 208, 200 if mlp else 208
    else:
        tiles = 256, 128
    return *tiles, math.ceil(T / tiles[1])


def tiles_sm90(way: Way, name: str, B, S, T, C, operations: int, nbytes: int, mlp: bool) -> Launch:
    """Pairs of tiles of 64 channels, one for each warpgroup, that stream through a block."""
    depth, tokens, down = tokens_of_tiles(S, T, mlp)
    pairs = math.ceil(B * math.ceil(C / 64) / 2)
    kernel = f"{name}<__nv_bfloat16, {depth}, {tokens}>"
    cluster = 2 if mlp and min(pairs, way.device.multiprocessors // down) > 1 else 1
    launch = Launch(way, kernel, pairs * down, nbytes, operations, cluster, True, down)
    launch.run("tile", 8)
    launch.move(4 * (depth + tokens) * LINE)  # by TMA, and to or from registers
    return launch


def token_linear_sm90(way: Way, B: int, S: int, T: int, C: int) -> Launch:
    nbytes = 2 * (B * (S + T) * C + S * T)
    launch = tiles_sm90(
        way, "token_linear_sm90_kernel", B, S, T, C, 2 * B * S * T * C, nbytes, False
    )
    depth, tokens, _ = tokens_of_tiles(S, T, False)
    launch.multiply(2 * 2 * 64 * depth * tokens, 1.0)
    launch.move(2 * depth * tokens * 2)
    return launch


def token_mlp_sm90(way: Way, B: int, S: int, T: int, C: int, D: int) -> list[Launch]:
    nbytes = 2 * (B * (S + T) * C + (S + T) * D) + 8 * B * S
    operations = 2 * B * C * D * (S + T)
    launch = tiles_sm90(way, "token_mlp_sm90_kernel", B, S, T, C, operations, nbytes, True)
    depth, tokens, _ = tokens_of_tiles(S, T, True)
    chunks = math.ceil(D / 64)
    launch.multiply(2 * chunks * 2 * 64 * 64 * (depth + tokens), 1.0)
    launch.run("chunk", 8 * (chunks - 1))  # the last one is in the tile's way
    weights = chunks * (depth + up(tokens, 16)) * LINE  # once for both warpgroups
    launch.move(2 * chunks * 64 * (depth + tokens) * 2 + weights, weights / launch.cluster)
    return [Launch(way, f"pack_w1_kernel<{way.type}>", math.ceil(D / 32), 4 * S * D), launch]


def token_mlp_backward_sm90(
    way: Way, B: int, S: int, T: int, C: int, D: int
) -> list[Launch] | None:
    """csrc/cuda/token_mlp_backward_sm90.cu: a cluster has all channels of an image."""
    blocks, longest = math.ceil(C / 128), max(S, T)
    if S > 200 or T > 208 or blocks > 8:
        return None
    depth, tokens = (64, 64) if longest <= 64 else (144, 144) if longest <= 144 else (208, 200)
    nbytes = 2 * (B * C * (3 * S + T + 2 * D) + (S + T) * D) + 4 * B * blocks * 8 * D
    launch = Launch(
        way, f"token_mlp_backward_sm90_kernel<__nv_bfloat16, {depth}, {tokens}>", B * blocks,
        nbytes, 2 * B * C * D * (2 * S + T), blocks, True,
    )  # fmt: skip
    chunks = math.ceil(D / 64)
    launch.multiply(2 * chunks * 2 * 64 * 64 * (2 * depth + tokens), 1.0)
    launch.run("tile", 8)
    launch.run("chunk", 8 * chunks)
    weights = 2 * chunks * depth * LINE
    multiplied = chunks * 64 * 2 * (2 * 2 * depth + tokens)  # both sides but for the last product's
    staged = 4 * chunks * 64 * LINE
    tile = (4 * depth + 3 * depth) * LINE  # TMA's, and what reads x twice and writes dx
    launch.move(
        weights + 2 * (multiplied + staged + tile), weights / blocks + nbytes / launch.parts
    )
    return [Launch(way, f"pack_w1_kernel<{way.type}>", math.ceil(D / 32), 4 * S * D), launch]
