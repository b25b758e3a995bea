"""Bugs for test_passes.py to plant in the passes of csrc/cuda: what stands there, and the bug."""

COLUMNS = {
    "one column beyond the end": ("i * step) < end", "i * step) <= end"),
    "narrow columns beyond the end read": (
        "if (columns.has(i)) raw.halves",
        "raw.halves",
    ),
    "narrow floats beyond the end read": ("if (columns.has(i)) raw.singles", "raw.singles"),
    "narrow columns beyond the end written": ("if (columns.has(i)) to[", "to["),
    "second half of the floats not read": (
        "if (dtype == DType::kFloat32) raw.words[1]",
        "if (0) raw.words[1]",
    ),
    "second half of the floats not written": (
        "if constexpr (sizeof(T) == 4) words[1]",
        "if (0) words[1]",
    ),
    "a lane left out of the sum": ("mask = 16", "mask = 8"),
    "all rows taken for one image's": ("if (stride_b == count * stride) count", "count"),
    "rows of the first image": ("b * stride_b +", ""),
    "alignment of rows not asked for": ("items_ % kItems == 0 &&", ""),
    "alignment of images not asked for": ("x.images > 1 ? x.rows.stride_b : 0", "0"),
    "alignment of pointers not asked for": ("&& bytes_ % 16 == 0", ""),
}

PASSES = {
    "rest of a long row not read": ("if (begin != held) strip", "if (false) strip"),
    "beginning of a long row not read again": ("begin != held", "begin > held"),
    "what is held not noted": ("held = begin, columns", "begin, columns"),
    "columns beyond the end centred": ("at.has(j) ? v.at[j] - center : 0.0f", "v.at[j] - center"),
    "one row beyond the end": ("row < rows; row += warps", "row <= rows; row += warps"),
    "one lane's sum for the mean": ("warp_sum(total) / columns", "total / columns"),
    "one lane's sum for the variance": ("warp_sum(squares)", "squares"),
    "one lane's sum for a row": ("total = warp_sum(total);", ""),
    "the mean not taken off": ("(v.at[j] - center) * deviation", "v.at[j] * deviation"),
    "given moments not read": ("else if (norm.mean)", "else if (false)"),
    "moments not written": ("norm.mean[row] = center, norm.rstd[row] = deviation", ""),
    "residual of the first row": ("residual.load(row, at)", "residual.load(0, at)"),
    "a scale without a residual left out": ("scale.data || residual.data", "residual.data"),
    "a residual without a scale left out": ("scale.data || residual.data", "scale.data"),
    "result beyond the row": ("store(v, y, dtype, row", "store(v, y, dtype, row + 1"),
    "gradient of an activation beyond the row": (
        "store(v, dx, dtype, row",
        "store(v, dx, dtype, row + 1",
    ),
    "slope of the first row": ("inner(x, row, begin", "inner(x, 0, begin"),
    "a slope of no activation": (
        "with_activation(activation,",
        "with_activation(Activation::kNone,",
    ),
    "alignment of dy not asked for": (".with(dy)", ""),
    "alignment of the scale of dy not asked for": ("(dy).with(scale)", "(dy)"),
    "alignment of an activation's input not asked for": (".with(x).with(dx)", ".with(dx)"),
    "alignment of dx not asked for": (".with(dx)", ""),
    "last image of a part left out": (
        "images * (part + 1) / parts;",
        "images * (part + 1) / parts - 1;",
    ),
    "parts that overlap": ("image = images * part / parts", "image = 0"),
    "every image the first": ("first(a, image * rows + row", "first(a, row"),
    "layer norm without the deviation": ("- center) * deviation *", "- center) *"),
    "norm without the weight": ("load(norm.weight, 1.0f, at)", "load({}, 1.0f, at)"),
    "norm without the bias": ("load(norm.bias, 0.0f, at)", "load({}, 0.0f, at)"),
    "alignment of x not asked for in the norm": (
        "alignment.with(x).with(norm",
        "alignment.with(norm",
    ),
    "alignment of the norm's weight not asked for": (".with(norm.weight)", ""),
    "alignment of the norm's bias not asked for": (".with(norm.bias)", ""),
    "alignment of the norm's scale not asked for": ("bias).with(scale)", "bias)"),
    "alignment of the residual not asked for": (".with(residual)", ""),
    "alignment of the norm's result not asked for": (".with(residual).with(y)", ".with(residual)"),
    "alignment of a not asked for": ("Alignment(a.columns).with(a)", "Alignment(a.columns)"),
    "alignment of the scale not asked for": ("(a).with(scale)", "(a)"),
    "alignment of b not asked for": (".with(b)", ""),
}

PASSES_BACKWARD = {
    "no barrier before the means are read": (
        "block_barrier();  // the other turn",
        "// the other turn",
    ),
    "means overwritten while they are read": ("turn ^= 1", "turn ^= 0"),
    "no barrier before the sums are added up": ("along_x;\n  block_barrier();", "along_x;"),
    "rows of the next part": ("i < count && ty < down", "i < kGroup && ty < down"),
    "last row of a part left out": (
        "p.rows * (part + 1) / p.parts;",
        "p.rows * (part + 1) / p.parts - 1;",
    ),
    "parts that overlap": ("first = p.rows * part / p.parts", "first = 0"),
    "columns of the first strip": (
        "columns(strip * kStrip, p.columns, tx",
        "columns(0, p.columns, tx",
    ),
    "threads beyond the last whole row add": ("i = 1; i < down; ++i", "i = 1; i <= down; ++i"),
    "one thread's rows for all": ("i = 1; i < down; ++i", "i = 1; i < 1; ++i"),
    "rest of a long row not summed": (
        "begin < p.columns; begin",
        "begin < 512 && begin < p.columns; begin",
    ),
    "one lane's means": ("ones = warp_sum(ones), along = warp_sum(along);", ""),
    "no projection from ones": ("factor.at[j] - one -", "factor.at[j] -"),
    "no projection from x": ("- normal * along)", ")"),
    "no bias in the gradient of scale": (" + bias.at[j] * sums.at[j]", ""),
    "no barrier before the parts are added up": ("= total;\n  block_barrier();", "= total;"),
    "numbers beyond the end written": ("warp > 0 || at >= n", "warp > 0"),
    "a warp's parts left out": ("i < kWarps; ++i) total", "i < kWarps - 1; ++i) total"),
    "alignment of dy not asked for": ("alignment.with(p.dy)", "alignment"),
    "alignment of x not asked for": (".with(p.x)", ""),
    "alignment of weight not asked for": (".with(p.norm.weight)", ""),
    "alignment of bias not asked for": (".with(p.norm.bias)", ""),
    "alignment of scale not asked for": (".with(p.scale)", ""),
    "alignment of dx not asked for": (".with(p.dx)", ""),
    "alignment of the sums not asked for": (
        "alignment.with(p.dweight).with(p.dbias).with(p.dscale);",
        "",
    ),
}

PLANTED = {
    "columns.h": COLUMNS, "passes.cu": PASSES, "passes_backward.cu": PASSES_BACKWARD,
}  # fmt: skip
