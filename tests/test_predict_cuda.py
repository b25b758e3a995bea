"""The prediction for the CUDA kernels: by hand, and against what the adapters launch and what
nvcc made of the kernels."""

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import cuda_code  # noqa: E402
import cuda_model  # noqa: E402
import cuda_products  # noqa: E402
import emulator  # noqa: E402
import issue  # noqa: E402
import launches  # noqa: E402
import predict_cuda as predict  # noqa: E402
from cuda_passes import moments  # noqa: E402

from shiftmlp import _native  # noqa: E402
from shiftmlp.bench.cases import CASES, Case  # noqa: E402

# Too many of them, or of channels, for token_mlp's backward in one kernel.
MANY_TOKENS = [
    Case("token_linear", "", (("S", 576), ("C", 384))),
    Case("token_mlp", "", (("S", 256), ("C", 512), ("D", 256))),
    Case("token_mlp", "", (("S", 64), ("C", 1280), ("D", 256))),
]
CLOCK, MULTIPROCESSORS = 1.7e9, 132
HOPPER, TF32, AMPERE, _ = predict.WAYS
RATE = MULTIPROCESSORS * CLOCK / 790e12  # clocks of an operation


def issued(way, kernel, region, count="issued"):
    return cuda_model.ISSUED[way.device.arch][kernel][region][count]


def test_a_product_by_hand():
    # 64 images of 196 tokens, 768 to 3072 channels: 98 x 12 parts of 128 rows by 256 columns.
    launch = cuda_products.product(HOPPER, 3072, 64 * 196, 768, kind="gelu")
    assert launch.parts == 98 * 12 and launch.blocks == 132
    operations = 2 * 128 * 256 * 768
    assert launch.clocks["tensor"] == pytest.approx(operations * RATE)
    # 12 chunks of 128 rows and half of 256 columns, of 128 bytes each, and the result.
    nbytes = 12 * (128 + 128) * 128 + 128 * 256 * 2
    assert launch.clocks["L2"] == pytest.approx(nbytes * MULTIPROCESSORS * CLOCK / 5.5e12)
    # Eight warps: the way of a chunk has four HGMMA for each, and each lane has 128 sums.
    kernel = "product_sm90_kernel<__nv_bfloat16, Layout<false, false>, (Finish)0, 256>"
    chunks = 12 * 4 / issued(HOPPER, kernel, "chunk", "mma")
    once, each = (issued(HOPPER, kernel, region) for region in ("gelu", "chunk"))
    assert launch.clocks["issue"] == pytest.approx(8 * (once + chunks * each) / 4)
    assert launch.clocks["mufu"] == pytest.approx(128 * 256 * 2 / 16, rel=0.05)
    assert launch.nbytes == 2 * (64 * 196 * 768 + 768 * 3072 + 64 * 196 * 3072)
    busiest = math.ceil(98 * 12 / 132)
    assert launch.times_us()["tensor"] == pytest.approx(busiest * 132e6 * operations / 790e12)


def test_a_portable_product_by_hand():
    # 108 multiprocessors with two blocks each: 98 x 6 of 128 x 128 are three waves.
    launch = cuda_products.product(AMPERE, 768, 64 * 196, 384, turned=1, read=1)
    assert (launch.parts, launch.blocks, launch.busiest) == (588, 588, 6)
    operations = 2 * 128 * 128 * 384
    assert launch.clocks["tensor"] == pytest.approx(operations * 108 * 1.41e9 / 312e12)
    kernel = launch.kernel
    assert kernel == "product_kernel<__nv_bfloat16, Layout<false, false>, Shape<128, 128, 64, 32> >"
    # 12 chunks by 8 warps; 16 pieces of 8 items of the side that is turned; 64 eights of sums.
    each = {
        name: issued(AMPERE, kernel, name) for name in ("chunk", "side", "piece", "plain", "read")
    }
    chunks = 12 * (8 * (each["chunk"] + each["side"]) + 16 * each["piece"])
    expected = (chunks + 64 * each["plain"] + 16 * each["read"]) / 4
    assert launch.clocks["issue"] == pytest.approx(expected)
    slow = cuda_products.product(dataclasses.replace(HOPPER, hopper=False), 768, 64 * 196, 384)
    assert slow.clocks["tensor"] == pytest.approx(operations * RATE / 0.62)


def test_the_gradient_of_a_weight_over_tokens_by_hand():
    # 384 rows of w by 196 columns, 3 tiles of 128 by 256, so 44 parts of 64 * 768 channels.
    launch, sums = cuda_products.weight_gradient(HOPPER, 196, 384, 768, 64)
    assert (launch.parts, sums.nbytes) == (3 * 44, 196 * 384 * (4 * 44 + 2))
    operations = 2 * 128 * 256 * 64 * 768 / 44
    assert launch.clocks["tensor"] == pytest.approx(operations * RATE)
    assert launch.nbytes == 2 * 64 * 768 * (196 + 384) + 4 * 44 * 196 * 384


def test_token_mlp_by_hand():
    # Pairs of tiles of 64 channels: 128 images, 12 tiles of 768 channels; 6 chunks of 384 units.
    *_, launch = predict.Tokens(384).forward(HOPPER, 128, 196, 768)
    assert launch.parts == 128 * 12 / 2 and launch.blocks == 132
    operations = 2 * 64 * 6 * 64 * (208 + 200) * 2
    assert launch.clocks["tensor"] == pytest.approx(operations * RATE)
    assert launch.clocks["mufu"] == pytest.approx(2 * 64 * 384 * 2 / 16, rel=0.05)


def test_a_pass_by_hand():
    launch = moments(HOPPER, 8 * 132, 512)
    assert (launch.parts, launch.busiest) == (132, 1)
    of_a_row = issued(HOPPER, launch.kernel, "moments") * 512 / 1024
    assert launch.clocks["issue"] == pytest.approx(8 * of_a_row / 4)
    few = moments(HOPPER, 8, 512)
    assert few.times_us()["memory"] == pytest.approx(1e6 * few.nbytes / 4.3e12 * 132)


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
    assert cuda_products.tiles_of_product(M, N, 1, MULTIPROCESSORS) == tiles


@pytest.mark.parametrize(
    "M, N, images, tiles",
    [
        (768, 50176, 1, (192, 4, 2, 1568)),  # rows' parts of 256, and clusters of 8
        (512, 50176, 1, (256, 2, 2, 784)),
        (384, 50176, 1, (192, 2, 2, 784)),
        (2048, 50176, 1, (256, 8, 1, 3136)),
        (96, 128, 1, (128, 1, 1, 1)),
        (512, 256, 196, (256, 2, 2, 784)),
        (384, 196, 64, (192, 2, 2, 256)),
    ],
)
def test_tiles_of_a_product_with_a_norm(M, N, images, tiles):
    assert cuda_products.tiles_of_norm(M, N, images, HOPPER.device) == tiles


@pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))
def test_the_launches_are_those_of_the_adapters():
    """In their order, with their tiles, clusters and blocks, on the emulator's multiprocessors."""
    backends = {"emulated_sm90": HOPPER, "emulated": AMPERE, "emulated_tf32": TF32}
    jobs = [
        (case, batch, direction, backend)
        for case in CASES
        for batch in (3, 256)
        for direction in ("fwd", "bwd")
        for backend in (["emulated"] if case.op == "spatial_shift" else backends)
    ]
    jobs += [(case, 3, "bwd", "emulated_sm90") for case in MANY_TOKENS]
    asked = [(case.op, case.sizes, *rest) for case, *rest in jobs]
    for job, made in zip(jobs, launches.record(asked), strict=True):
        case, batch, direction, backend = job
        way = backends[backend]
        way = dataclasses.replace(
            way, device=dataclasses.replace(way.device, multiprocessors=2, regions=())
        )
        modelled = predict.launches_of(case, batch, direction, way)
        assert [(one.kernel, one.cluster, one.blocks) for one in modelled] == made, job


@pytest.mark.skipif(_native.why_not("cuda") is not None, reason=str(_native.why_not("cuda")))
@pytest.mark.skipif(not emulator.NVCC.exists(), reason="nvcc is not installed")
@pytest.mark.skipif(not shutil.which("c++filt"), reason="c++filt is not installed")
def test_the_kernels_issue_what_is_recorded(monkeypatch):
    """Within a fifth. benchmarks/issue.py renews this."""
    monkeypatch.setenv("CUDA_HOME", str(emulator.NVCC.parents[1]))
    if cuda_code.compiler() != json.loads(cuda_code.RECORD.read_text())["nvcc"]:
        pytest.skip("recorded with another nvcc")
    for arch, kernels in issue.read_library().items():
        recorded = cuda_model.ISSUED[arch]
        assert set(kernels) == set(recorded), arch
        for name, regions in kernels.items():
            for region, found in regions.items():
                was, now = recorded[name][region]["issued"], found["issued"]
                assert abs(now - was) <= 0.2 * was, (arch, name, region, was, now)


def test_the_way_through_a_loop():
    """By hand: two ways through a loop, one inside it, and a jump that is a call."""
    code = """
        /*0000*/                   MOV R1, R2 ;
.L_x_1:
        /*0010*/                   LDG.E R3, [R2] ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/                   MUFU.EX2 R3, R3 ;
        /*0040*/                   FADD R3, R3, R3 ;
.L_x_2:
        /*0050*/                   FMUL R3, R3, R3 ;
        /*0060*/               @P1 BRA `(.L_x_2) ;
        /*0070*/               @P2 CALL.REL.NOINC `(.L_x_3) ;
        /*0080*/                   BRA `(.L_x_1) ;
.L_x_3:
        /*0090*/                   EXIT ;
"""
    blocks = issue.blocks_of(code)
    loops = issue.loops_of(blocks)

    def counted(*region, **options):
        return issue.count(issue.way(blocks, loops, issue.Region(*region, **options)))

    assert counted("LDG") == {"issued": 6, "fp32": 1, "mufu": 0, "mma": 0}
    assert counted("LDG", {"MUFU": 1}) == {"issued": 8, "fp32": 2, "mufu": 1, "mma": 0}
    assert counted("LDG", {"MUFU": 1}, apart="FMUL")["issued"] == 6
    assert counted("LDG", {"MUFU": 1}, inside={"FMUL": -1}) == counted("LDG", {"MUFU": 1})
    assert counted("FMUL") == {"issued": 2, "fp32": 1, "mufu": 0, "mma": 0}
    assert counted("FMUL", outermost=True) == counted("LDG")
    assert issue.way(blocks, loops, issue.Region("STG")) is None


def test_every_line_of_the_table_has_all_columns():
    case = predict.select(["channel_mlp"])[0]
    row = predict.predict(case, 256, "fwd", HOPPER)
    assert [predict.short(one["kernel"]) for one in row["launches"]] == [
        "norm", "product_sm90", "product_sm90",
    ]  # fmt: skip
    assert len(predict.cells(row)) == len(predict.COLUMNS)
    assert len(predict.of_launches(row)) == 1 + 3
