"""Bugs to plant in token_mlp's backward for sm_90a and in its headers: see hopper_bugs.py."""

BUGS = {
    "no wait for the weights": ("mbarrier_wait(full[box % kBoxes], box / kBoxes % 2);", ""),
    "places handed back by one block": ("cluster * kConsumers / 32", "kConsumers / 32"),
    "places handed back to one block": (
        "if (lane < cluster) mbarrier_arrive_in(lane, empty",
        "if (lane < 1) mbarrier_arrive_in(lane, empty",
    ),
    "weights loaded over those in use": (
        "mbarrier_wait(shared.empty[place], box / shared.kBoxes % 2 ^ 1);",
        "",
    ),
    "all weights loaded by each block": (
        "if (box++ % cluster != cluster_rank()) return;",
        "++box;",
    ),
    "weights for the own block": ("(1 << cluster) - 1", "1 << cluster_rank()"),
    "w2 in the place of w1": (
        "load(maps.w1, j), load(maps.w2, j)",
        "load(maps.w2, j), load(maps.w1, j)",
    ),
    "the first chunk's weights": ("full, {j, 0});\n    tma", "full, {0, 0});\n    tma"),
    "no wait for norm(x)": ("mbarrier_wait(events.normed, turn);", ""),
    "no wait for dy": ("mbarrier_wait(events.dy, turn);", ""),
    "no wait for x": ("if (has_norm(p)) mbarrier_wait(events.x, turn);", ""),
    "tiles replaced while they are read": ("mbarrier_wait(events.read, turn);", ""),
    "dx stored before it is there": ("mbarrier_wait(events.dx, turn);", ""),
    "dx announced by whoever comes first": (
        "mbarrier_init(dx, kWarpgroup)",
        "mbarrier_init(dx, 1)",
    ),
    "tiles read by one warp": ("mbarrier_init(read, kWarpgroup / 32)", "mbarrier_init(read, 1)"),
    "dy loaded over dx on its way": (
        "tma_store(maps.dx, {c, 0, b}, shared.dy[group]);\n    tma_store_commit();\n"
        "    tma_store_wait_read<0>();",
        "tma_store(maps.dx, {c, 0, b}, shared.dy[group]);\n    tma_store_commit();",
    ),
    "first channels' tiles": ("(2 * cluster_rank() + group) * kChannels", "group * kChannels"),
    "one warpgroup's tiles": ("2 * cluster_rank() + group", "2 * cluster_rank()"),
    "images left out": ("b += gridDim.x / cluster, turn", "b += gridDim.x, turn"),
    "images of one block after another": (
        "int b = blockIdx.x / cluster; b < p.B",
        "int b = blockIdx.x; b < p.B",
    ),
    "next norm(x) of the same image": ("events.normed, next", "events.normed, b"),
    "no bias in the hidden": ("sums[at] + b1[16 * k + n / 2 * 8 + q + j]", "sums[at]"),
    "bias beyond the end": ("j < p.D ? read(p.b1, j) : 0.0f", "read(p.b1, j)"),
    "no scale": ("scale[n % 2] * activate", "activate"),
    "scale of another channel": ("scale[n % 2] * activate", "scale[0] * activate"),
    "db1 beyond the end": ("if (unit < left) db1[unit] = sum;", "db1[unit] = sum;"),
    "db1 of the last channels": ("n % 2 == 0 ? da[j] : sum + da[j]", "da[j]"),
    "db1 in another order": ("16 * (k - 1 + g / 4)", "16 * (k - g / 4)"),
    "one part of db1 for all warps": ("c / kChannels * 4 + warp", "c / kChannels * 4"),
    "one part of db1 for all images": ("b * parts_of_b1(p.C) + c", "c"),
    "channels beyond the end in db1": ("p.db1 && c < p.C", "p.db1"),
    "lines staged over those on their way": (
        "if (thread == 0) tma_store_wait_read<0>();\n    named_barrier(own, kWarpgroup);  // the",
        "named_barrier(own, kWarpgroup);  // the",
    ),
    "lines staged while others wait": ("named_barrier(own, kWarpgroup);  // the lines", "// the"),
    "lines stored before they are there": (
        "async_proxy_fence();\n    named_barrier(own, kWarpgroup);\n    if (thread > 0)",
        "async_proxy_fence();\n    if (thread > 0)",
    ),
    "no fence before the lines are stored": (
        "async_proxy_fence();\n    named_barrier(own, kWarpgroup);\n    if (thread > 0)",
        "named_barrier(own, kWarpgroup);\n    if (thread > 0)",
    ),
    "no fence before dx is stored": (
        "async_proxy_fence();\n    mbarrier_arrive(events.dx)",
        "mbarrier_arrive(events.dx)",
    ),
    "no fence before the products": (
        "shared.dy[tiles[0]];\n      wgmma_fence();",
        "shared.dy[tiles[0]];",
    ),
    "no fence before the product by w1": ("wgmma_fence(dhidden);", ""),
    "no wait for the sums": ("wgmma_wait<0>(sums, dsums);\n    for", "for"),
    "no wait for the next sums": ("wgmma_wait<0>(sums, dsums);\n    }", "}"),
    "dx from unfinished sums": ("wgmma_wait<0>(dnormed);", ""),
    "sums of the chunk before": (
        "wgmma_operand(box_at(box)[k]), k > 0)",
        "wgmma_operand(box_at(box)[k]), true)",
    ),
    "w1 handed back while it is read": ("wgmma_wait<1>();\n", ""),
    "w1 handed back too early": ("wgmma_wait<1>()", "wgmma_wait<2>()"),
    "w1 never handed back": ("shared.hand_back(box - 2, cluster);", ""),
    "w2 never handed back": ("shared.hand_back(box + 1, cluster);", ""),
    "dx of the last chunk alone": ("chunk + k > 0);", "k > 0);"),
    "ends over lines on their way": (
        "mbarrier_wait(events.x, turn);\n    clear_lines();",
        "mbarrier_wait(events.x, turn);",
    ),
    "no barrier before the exit": ("cluster_barrier();  // the others", "// the others"),
    "no barrier after the mbarriers' start": (
        "cluster_barrier();\n  if (threadIdx.x < kConsumers)",
        "if (threadIdx.x < kConsumers)",
    ),
    "channels beyond the end weighed alike": ("c < C ? read(weight, c, 1.0f) : 0.0f", "1.0f"),
    "next norm(x) beyond the end": ("if (next < p.B) load", "load"),
    # token_norm_sm90.h
    "no barrier after the moments": (
        "named_barrier(barrier, kWarpgroup);\n  const float w",
        "const float w",
    ),
    "moments beyond the end": ("norm.mean && s < norm.S", "norm.mean"),
    "no barrier before the warps' sums are added": (
        "if (norm.mean) {\n    named_barrier(barrier, kWarpgroup);",
        "if (norm.mean) {",
    ),
    "sums told before they are there": (
        "named_barrier(barrier, kWarpgroup);\n    if (thread < cluster) mbarrier_release_in",
        "if (thread < cluster) mbarrier_release_in",
    ),
    "told to this block alone": (
        "thread < cluster) mbarrier_release_in",
        "thread < 1) mbarrier_release_in",
    ),
    "others' sums before they are told": ("mbarrier_wait_in_cluster(exchange.told, turn);", ""),
    "told by one warpgroup": ("mbarrier_init(told, 2 * cluster)", "mbarrier_init(told, cluster)"),
    "read by one warpgroup": ("mbarrier_init(read, 2 * cluster)", "mbarrier_init(read, cluster)"),
    "sums of one warpgroup": ("staged[part % 2].ends", "staged[0].ends"),
    "sums of this block": ("read_in(part / 2,", "read_in(0,"),
    "handed back before they are read": (
        "named_barrier(barrier, kWarpgroup);\n  if (norm.mean && thread",
        "if (norm.mean && thread",
    ),
    "never handed back": (
        "if (norm.mean && thread < cluster) mbarrier_arrive_in(thread, exchange.read);",
        "",
    ),
    "weights of channels beyond the end": (
        "c < C ? read(weight, c, 1.0f) : 0.0f",
        "read(weight, c, 1.0f)",
    ),
    "sums of channels beyond the end": ("lane % 4 > 0 || channel >= norm.C", "lane % 4 > 0"),
    "one lane's tokens in the norm's gradients": ("mask < 4; mask *= 2", "mask < 2; mask *= 2"),
    "sums of other lanes": ("values[i + half] : values[i];", "values[i] : values[i];"),
    "means of all lanes' channels": ("total.first / norm.C", "total.first / (norm.C + 8)"),
    "no projection along x": ("normal(token, x) * means.second", "0.0f"),
    "x looked at without LayerNorm": (
        "norm.mean ? (d - of_x) * mine.moments[token].rstd : d",
        "(d - of_x) * mine.moments[token].rstd",
    ),
}
