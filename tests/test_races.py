"""Races that are planted in the CUDA kernels, and that csrc/emulator/race.h must find whatever the
results are; and that it finds none in the kernels as they are, for which `make race` does more."""

import functools
import re

import emulator
import pytest
from hopper_bugs import TOKEN_LINEAR
from passes_defects import PASSES_BACKWARD
from product_norm_bugs import BUGS as PRODUCT_NORM
from product_sm90_bugs import BUGS as PRODUCT_SM90
from test_emulator import HOPPER_EXAMPLE, check_hopper_example, check_spatial_shift
from test_hopper import check_token_linear, check_token_mlp
from test_passes import check_passes
from test_primitives import check_cluster, check_exchange
from test_product_defects import PRODUCT, check_product
from test_product_norm import check_norm
from test_product_sm90 import check_product as check_product_sm90
from test_token_mlp_backward import check as check_token_mlp_backward
from token_mlp_backward_bugs import BUGS as TOKEN_MLP_BACKWARD

pytestmark = pytest.mark.skipif(bool(emulator.missing()), reason=str(emulator.missing()))


def check_products_sm90(library, seed):
    check_product_sm90(library, seed)
    check_norm(library, seed)


def check_clusters(library, seed):
    for check in (check_cluster, check_exchange):
        check(functools.partial(emulator.conform, library), seed)


CHECKS = {
    "spatial_shift.cu": check_spatial_shift,
    "passes.cu": check_passes,
    "product.cu": check_product,
    "product_sm90.cu": check_products_sm90,
    "token_linear_sm90.cu": check_token_linear,
    "token_mlp_sm90.cu": check_token_mlp,
    "token_mlp_backward_sm90.cu": check_token_mlp_backward,
    "hopper_example.cu": check_hopper_example,
    "conformance_cluster.cu": check_clusters,
}


@pytest.mark.parametrize("source", CHECKS)
def test_kernels_have_none(source):
    CHECKS[source](emulator.build(find_races=True), seed=0)


# What stands there, what is put in its place, and who races with whom, in either order.
PLANTED = {
    ("product.cu", "no barrier before the sums are stored"): (
        *PRODUCT["no barrier before the sums are stored"], "thread writes", "thread reads",
    ),
    ("passes_backward.cu", "means overwritten while they are read"): (
        *PASSES_BACKWARD["means overwritten while they are read"], "thread writes", "thread reads",
    ),
    ("passes.cu", "rows by several warps"): (
        "row < rows; row += warps", "row < rows; ++row", "thread writes", "thread writes",
    ),
    ("token_linear_sm90.cu", "one place for the tokens of two blocks"): (
        *TOKEN_LINEAR["first tokens' y"], "a TMA store writes", "another block writes",
    ),
    ("token_mlp_sm90.cu", "a number by every lane"): (
        "if (lane == 0) hidden[j] =", "hidden[j] =", "thread writes", "thread writes",
    ),
    ("product_sm90.cu", "terms of columns by every thread"): (
        "c = thread; c < kColumns; c += kWarpgroup", "c = 0; c < kColumns; ++c",
        "thread writes", "thread writes",
    ),
    ("product_sm90.cu", "lines written before they were stored"): (
        *PRODUCT_SM90["lines written before they were stored"],
        "thread writes", "a TMA store reads",
    ),
    ("product_sm90.cu", "chunk handed back before it was read"): (
        *PRODUCT_SM90["chunk handed back before it was read"], "a TMA load writes", "wgmma reads",
    ),
    ("product_sm90.cu", "normed rows handed back while other lanes read them"): (
        "if constexpr (Layout::kNormsRows) warp_barrier();", "",
        "a TMA load writes", "thread reads",
    ),
    ("token_mlp_backward_sm90.cu", "ends while others store lines"): (
        *TOKEN_MLP_BACKWARD["ends over lines on their way"], "thread writes", "a TMA store reads",
    ),
    ("token_mlp_backward_sm90.cu", "staged over sums that others read"): (
        "if (chunk == 0 && p.mean) mbarrier_wait", "if (false) mbarrier_wait",
        "thread writes", "thread reads",
    ),
    ("product_sm90.cu", "sums overwritten while others read them"): (
        *PRODUCT_NORM["sums overwritten while others read them"],
        "thread writes", "thread reads",
    ),
    ("hopper_example.cu", "no barrier before the copy to y"): (
        *HOPPER_EXAMPLE["no barrier before the copy to y"], "a TMA store reads", "thread writes",
    ),
    ("conformance_cluster.cu", "a shuffle for a barrier"): (
        "warp_barrier();\n    if (lane < 2)", "shuffle(lane, 0);\n    if (lane < 2)",
        "a TMA load writes", "thread reads",
    ),
}  # fmt: skip


@pytest.mark.parametrize("source, bug", PLANTED)
def test_planted_bug_is_told_with_both_lines(source, bug):
    right, wrong, *who = PLANTED[source, bug]
    holder = emulator.holder(source, right) if source.endswith("_sm90.cu") else source
    library = emulator.build(holder, right, wrong, source, find_races=True)
    check = CHECKS[source.replace("passes_backward", "passes")]
    with pytest.raises(RuntimeError) as told:
        for seed in range(3):
            check(library, seed)
    one, other = (re.sub("thread", r"thread \\d+( of block .*)?", each) for each in who)
    line = r"\w+\.(cu|h):\d+"
    pairs = "|".join(
        f"{first} here and that {second}" for first, second in ((one, other), (other, one))
    )
    assert re.search(
        rf"{line}: block .*: race: nothing orders that ({pairs}) the same bytes at {line}$",
        str(told.value),
    ), told.value
