"""The prediction for the kernels of sm_90a counts what they do: by hand, and against their code."""

import json
import math
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import predict_cuda as predict  # noqa: E402
from cuda_code import RECORD  # noqa: E402

CLOCK, MULTIPROCESSORS = 1.7e9, 132


def test_a_product_by_hand():
    # 64 images of 196 tokens, 768 to 3072 channels: 98 x 12 parts of 128 rows by 256 columns.
    launch = predict.product(3072, 64 * 196, 768, gelu=True)
    assert launch.parts == 98 * 12
    operations = 2 * 128 * 256 * 768
    assert launch.clocks["tensor"] == pytest.approx(operations * MULTIPROCESSORS * CLOCK / 790e12)
    assert launch.clocks["gelu"] == pytest.approx(128 * 256 * 19 / 128)
    # 12 chunks of 128 rows and half of 256 columns, of 128 bytes each, and the result.
    nbytes = 12 * (128 + 128) * 128 + 128 * 256 * 2
    assert launch.clocks["L2"] == pytest.approx(nbytes * MULTIPROCESSORS * CLOCK / 5.5e12)
    assert launch.nbytes == 2 * (64 * 196 * 768 + 768 * 3072 + 64 * 196 * 3072)
    busiest = math.ceil(98 * 12 / 132)
    assert launch.times_us()["tensor"] == pytest.approx(busiest * 132e6 * operations / 790e12)


def test_the_gradient_of_a_weight_over_tokens_by_hand():
    # 384 rows of w by 196 columns, 3 tiles of 128 by 256, so 44 parts of 64 * 768 channels.
    launch, sums = predict.weight_gradient(196, 384, 768, 64)
    assert (launch.parts, sums.nbytes) == (3 * 44, 196 * 384 * (4 * 44 + 2))
    operations = 2 * 128 * 256 * 64 * 768 / 44
    assert launch.clocks["tensor"] == pytest.approx(operations * MULTIPROCESSORS * CLOCK / 790e12)
    assert launch.nbytes == 2 * 64 * 768 * (196 + 384) + 4 * 44 * 196 * 384


def test_token_mlp_by_hand():
    # Pairs of tiles of 64 channels: 128 images, 12 tiles of 768 channels; 6 chunks of 384 units.
    *_, launch = predict.token_mlp(128, 196, 768, 384)
    assert launch.parts == 128 * 12 / 2
    operations = 2 * 64 * 6 * 64 * (208 + 200) * 2
    assert launch.clocks["tensor"] == pytest.approx(operations * MULTIPROCESSORS * CLOCK / 790e12)
    assert launch.clocks["gelu"] == pytest.approx(2 * 64 * 384 * 19 / 128)


@pytest.mark.parametrize(
    "M, N, tiles",
    [
        (3072, 50176, (256, 2, 4704)),
        (384, 50176, (192, 2, 784)),
        (384, 196, (128, 2, 6)),
        (128, 129 * 128, (128, 2, 130)),
        (128, 131 * 128, (128, 2, 132)),
        (128, 133 * 128, (128, 2, 134)),
        (128, 128, (128, 1, 1)),
    ],
)
def test_tiles_of_a_product(M, N, tiles):
    assert predict.tiles_of_product(M, N) == tiles


@pytest.mark.parametrize(
    "M, N, tiles",
    [
        (768, 50176, (192, 4, 2, 1568, 128)),  # rows' parts of 256, and clusters of 8
        (512, 50176, (256, 2, 2, 784, 128)),
        (384, 50176, (192, 2, 2, 784, 128)),
        (2048, 50176, (256, 8, 1, 3136, 128)),
        (96, 128, (128, 1, 1, 1, 132)),
    ],
)
def test_tiles_of_a_product_with_a_norm(M, N, tiles):
    assert predict.tiles_of_norm(M, N) == tiles


def test_every_kernel_exists():
    kernels = json.loads(RECORD.read_text())["instructions"]["sm_90a"]
    names = {name.partition("<")[0] for name in kernels}
    for op, launches in [*predict.OPS.items(), *predict.BACKWARD.items()]:
        sizes = {"B": 4, "S": 196, "C": 128, "D": 256, "H": 14, "W": 14}
        code = launches.__code__
        given = {name: sizes[name] for name in code.co_varnames[: code.co_argcount]}
        assert {one.kernel for one in launches(**given)} <= names, op


def test_the_table_has_a_line_for_each_launch_and_one_for_the_op():
    case = next(case for case in predict.select(["channel_mlp"]))
    lines = predict.table(case, 256, "fwd")
    assert [line[3] for line in lines] == [
        "moments_kernel", "product_sm90_kernel", "product_sm90_kernel", "all",
    ]  # fmt: skip
    assert all(len(line) == len(predict.COLUMNS) for line in lines)
