"""Predicts how close the CUDA kernels come to their floor, from their tiles and machine code.

    python benchmarks/predict_cuda.py [OP ...] [--batch N] [--launches] [--json FILE]

No GPU is needed. An op is the launches of its adapter in csrc/cuda: on an H200 in bfloat16, where
the kernels for sm_90a take the tensors; the portable ones in TF32 there, and in both on an A100.
A launch takes as long as its slowest pipe on the multiprocessor that has most parts, or as the
memory: that is optimistic, and the prediction with which a first run on a GPU is compared. "apart"
is one after another. A launch's floor is that of the operations and bytes that it has to do.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from cuda_model import DEVICES, Launch, Way  # noqa: E402
from cuda_passes import (  # noqa: E402
    activation_backward,
    moments,
    norm,
    norm_backward,
    spatial_shift,
    sum_columns,
)
from cuda_products import (  # noqa: E402
    product,
    token_linear_sm90,
    token_mlp_backward_sm90,
    token_mlp_sm90,
    weight_gradient,
)

from shiftmlp.bench.cases import SHAPES, Case, select  # noqa: E402
from shiftmlp.bench.report import _aligned  # noqa: E402

H200, A100 = DEVICES
WAYS = (
    Way(H200, "bf16", hopper=True), Way(H200, "tf32", hopper=False),
    Way(A100, "bf16", hopper=False), Way(A100, "tf32", hopper=False),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tokens:
    """An op over tokens: ``D`` hidden units or one layer, a LayerNorm or an affine, a scale, a
    residual, and a factor for every element, which products for sm_90a do not take."""

    D: int | None = None
    layer_norm: bool = True
    scale: bool = False
    residual: bool = True
    factor: bool = False

    def norm(self, way: Way, B: int, S: int, C: int) -> list[Launch]:
        if self.layer_norm:
            return [moments(way, B * S, C, norms=way.hopper)]
        return [norm(way, B * S, C)] * way.hopper

    def forward(self, way: Way, B: int, S: int, C: int) -> list[Launch]:
        if way.hopper and not self.factor:
            first = [moments(way, B * S, C)] * self.layer_norm
            if self.D:
                return [*first, *token_mlp_sm90(way, B, S, S, C, self.D)]
            return [*first, token_linear_sm90(way, B, S, S, C)]
        way = dataclasses.replace(way, hopper=False)
        read = self.residual + self.factor
        mixes = {"layout": (True, False), "shared": (False, True)}
        if not self.D:
            last = product(way, C, S, S, B, **mixes, turned=1, read=read)
            return [*self.norm(way, B, S, C), last]
        return [
            *self.norm(way, B, S, C),
            product(way, C, self.D, S, B, **mixes, turned=1, kind="gelu"),
            product(way, C, S, self.D, B, **mixes, read=read),
        ]

    def backward(self, way: Way, B: int, S: int, C: int) -> list[Launch]:
        way = dataclasses.replace(way, hopper=way.hopper and not self.factor)
        D = self.D
        turned = not way.hopper  # the norm's operand
        into_last = 0 if D else turned
        mixes = {"layout": (True, False), "shared": (False, True)}
        adjoint = {"layout": (True, True), "shared": (False, True)}
        launches = self.norm(way, B, S, C)
        fused = token_mlp_backward_sm90(way, B, S, S, C, D) if D and way.hopper else None
        if fused:
            launches += fused
            for rows, columns in ((B, C), (B, C), (B * -(-C // 64) * 4, D)):
                launches += norm_backward(way, rows, columns, sums=1, tensors=1, floats=True)
        elif D:
            launches.append(product(way, C, D, S, B, **mixes, turned=turned, kind="inner"))
        if self.factor or self.scale:
            again = product(way, C, S, D or S, B, **mixes, turned=into_last, read=self.factor)
            launches.append(again)
        if self.scale:
            launches += norm_backward(way, B * S, C, sums=1, tensors=2)
            launches.append(norm(way, B * S, C))
        launches += weight_gradient(way, D or S, S, C, B, turned=into_last + self.factor)
        launches += sum_columns(way, B, S, C, tensors=1 + self.factor)
        if D and not fused:
            launches.append(product(way, C, D, S, B, **adjoint, kind="slope", read=1))
        if D:
            launches += weight_gradient(way, S, D, C, B, turned=turned)
        if fused:
            return launches
        if D:
            launches += sum_columns(way, B, D, C)
        return launches + norm_adjoint(
            way, C, S, D or S, B, self.layer_norm, shared=(False, True), turned=self.factor,
            layout=(True, not way.hopper),
        )  # fmt: skip


def norm_adjoint(way: Way, M, N, K, images=1, means=True, **options) -> list[Launch]:
    """After a product; for sm_90a in it, and the norm's gradients are sums of floats that it leaves
    for every 64 rows of an image."""
    if not way.hopper:
        passes = norm_backward(way, images * N, M, means=means)
        return [product(way, M, N, K, images, **options), *passes]
    last = product(way, M, N, K, images, **options, kind="norm", read=1, means=means)
    sums = norm_backward(way, images * -(-N // 64), M, sums=1, tensors=1, floats=True)
    return [last, *sums, *sums]


def channel_mlp(way: Way, B: int, S: int, C: int, D: int, gathered: int = 0) -> list[Launch]:
    rows = B * S
    return [
        moments(way, rows, C),
        product(way, D, rows, C, turned=1, kind="gelu"),
        product(way, C, rows, D, read=1, gathered=gathered),
    ]


def channel_mlp_backward(way: Way, B: int, S: int, C: int, D: int) -> list[Launch]:
    return _channels_backward(way, B * S, C, D)


def shift_mlp(way: Way, B: int, H: int, W: int, C: int, D: int) -> list[Launch]:
    """That for sm_90a moves the hidden as it is stored."""
    return channel_mlp(way, B, H * W, C, D, gathered=not way.hopper)


def shift_mlp_backward(way: Way, B: int, H: int, W: int, C: int, D: int) -> list[Launch]:
    return _channels_backward(way, B * H * W, C, D, (B, H, W))


def _channels_backward(way: Way, rows: int, C: int, D: int, grid=None) -> list[Launch]:
    sums, adjoint = {"layout": (True, True)}, {"layout": (True, False)}
    turned = not way.hopper
    if grid:  # moved by a pass of its own, and so the slope is one too
        back = [
            product(way, D, rows, C, **adjoint),
            spatial_shift(way, *grid, D, backward=True),
            activation_backward(way, rows, D),
        ]
    else:
        back = [product(way, D, rows, C, **adjoint, kind="slope", read=1)]
    return [
        moments(way, rows, C, norms=way.hopper),
        product(way, D, rows, C, turned=turned, kind="inner"),
        *norm_backward(way, rows, C, sums=1, tensors=1),
        *weight_gradient(way, D, C, rows, **sums, gathered=bool(grid) and turned),
        *back,
        *weight_gradient(way, C, D, rows, **sums, turned=turned),
        *norm_backward(way, rows, D, sums=1, tensors=1),
        *norm_adjoint(way, C, rows, D, **adjoint),
    ]


def shift_linear(way: Way, B: int, H: int, W: int, C: int) -> list[Launch]:
    return [product(way, C, B * H * W, C, gathered=1)]


def shift_linear_backward(way: Way, B: int, H: int, W: int, C: int) -> list[Launch]:
    rows, gathered = B * H * W, not way.hopper
    return [
        *norm_backward(way, rows, C, sums=1, tensors=1),
        *[spatial_shift(way, B, H, W, C)] * way.hopper,
        *weight_gradient(way, C, C, rows, layout=(True, True), gathered=gathered),
        product(way, C, rows, C, layout=(True, False)),
        spatial_shift(way, B, H, W, C, backward=True),
    ]


# As the cases call them: see shiftmlp/bench/baselines.py.
TOKENS = {
    "token_mlp": lambda D: Tokens(D),
    "token_linear": lambda: Tokens(layer_norm=False, scale=True),
    "token_gate": lambda: Tokens(residual=False, factor=True),
}


def launches_of(case: Case, batch: int, direction: str, way: Way) -> list[Launch]:
    """Those of the case's adapter, in their order."""
    sizes, backward = dict(case.sizes), direction == "bwd"
    if case.op in TOKENS:
        op = TOKENS[case.op](**{name: sizes.pop(name) for name in ("D",) if name in sizes})
        return (op.backward if backward else op.forward)(way, batch, **sizes)
    if case.op == "spatial_shift":
        return [spatial_shift(way, batch, **sizes, backward=backward)]
    return globals()[case.op + "_backward" * backward](way, batch, **sizes)


def predict(case: Case, batch: int, direction: str, way: Way) -> dict:
    launches = launches_of(case, batch, direction, way)
    flops, nbytes = case.flops(batch, direction), case.bytes(batch, direction, way.item)
    floor = way.floor_us(flops, nbytes)
    predicted = sum(one.predicted_us() for one in launches)
    apart = sum(one.apart_us() for one in launches)
    return {
        "device": way.device.name, "dtype": way.dtype, "op": case.op, "case": case.name,
        "batch": batch, "direction": direction, "predicted_us": predicted, "apart_us": apart,
        "floor_us": floor, "share": floor / predicted, "apart_share": floor / apart,
        "launches": [
            {
                "kernel": one.kernel, "parts": one.parts, "busiest": one.busiest,
                "waves": one.waves, "bound": one.bound(), "times_us": one.times_us(),
                "predicted_us": one.predicted_us(), "apart_us": one.apart_us(),
                "floor_us": one.floor_us(), "share": one.floor_us() / one.predicted_us(),
            }
            for one in launches
        ],
    }  # fmt: skip


COLUMNS = ("op", "case", "", "launches", "longest", "bound by", "of it", "us", "apart", "floor")
COLUMNS += ("share", "apart")
OF_A_LAUNCH = ("", "kernel", "parts", "busiest", "waves", "bound by", "us", "apart", "share")


def cells(row: dict) -> tuple[str, ...]:
    """An op in one line."""
    longest = max(row["launches"], key=lambda one: one["predicted_us"])
    part = longest["predicted_us"] / row["predicted_us"]
    times = (f"{row[name]:.1f}" for name in ("predicted_us", "apart_us", "floor_us"))
    shares = (f"{row[name]:.0%}" for name in ("share", "apart_share"))
    named = row["op"], row["case"], row["direction"], str(len(row["launches"]))
    return *named, short(longest["kernel"]), longest["bound"], f"{part:.0%}", *times, *shares


def short(kernel: str) -> str:
    return kernel.partition("_kernel")[0]


def of_launches(row: dict) -> list[str]:
    lines = [
        (
            "  ", one["kernel"], str(one["parts"]), str(one["busiest"]), f"{one['waves']:.2f}",
            one["bound"], f"{one['predicted_us']:.1f}", f"{one['apart_us']:.1f}",
            f"{one['share']:.0%}",
        )
        for one in row["launches"]
    ]  # fmt: skip
    return _aligned([OF_A_LAUNCH, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ops", nargs="*", metavar="OP", choices=[*SHAPES, []])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--launches", action="store_true", help="every launch of an H200 in bf16")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every launch, written there")
    options = parser.parse_args()
    order = [(case, way) for way in ("fwd", "bwd") for case in select(options.ops)]
    rows = []
    for way in WAYS:
        some = [predict(case, options.batch, direction, way) for case, direction in order]
        print(f"PREDICTED for an {way.device.name}, {way.dtype}, batch {options.batch}")
        print("\n".join(_aligned([COLUMNS, *map(cells, some)])))
        rows += some
    for row in rows[: len(order)] if options.launches else ():
        print(row["op"], row["case"], row["direction"])
        print("\n".join(of_launches(row)))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
