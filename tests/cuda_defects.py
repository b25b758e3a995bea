"""Defects of the CUDA ops' adapters, for planted_defects.py: file, right, wrong and tests."""

OPS = "shiftmlp/ops"
CUDA = "csrc/cuda"
SHIFT_ADAPTER = f"{CUDA}/spatial_shift_op.cpp"
TOKENS_ADAPTER, TOKENS_BACKWARD = f"{CUDA}/tokens_op.cpp", f"{CUDA}/tokens_backward_op.cpp"
CHANNELS, OPERANDS = f"{CUDA}/channels.h", f"{CUDA}/operands.h"
NORM = f"{CUDA}/norm_in_product.h"
FORWARD, BACKWARD = f"{CUDA}/channels_op.cpp", f"{CUDA}/channels_backward_op.cpp"

DEFECTS = {
    "CUDA shift: strides of H and W swapped": (
        SHIFT_ADAPTER, "x.x.stride(1),\n          x.x.stride(2)",
        "x.x.stride(2),\n          x.x.stride(1)", "test_kernels.py emulated and layout",
    ),
    "CUDA shift: the adjoint moves the same way": (
        SHIFT_ADAPTER, "shift.reversed()", "shift", "test_kernels.py emulated and backward and good"
    ),
    "CUDA tokens: no scale": (
        TOKENS_ADAPTER, 'result.scale = call.vector(scale, x.columns, "scale");', "",
        "test_kernels.py emulated and exact and fewer",
    ),
    "CUDA tokens: no residual": (
        TOKENS_ADAPTER, 'result.residual = call.images(residual, sizes, "residual").rows;', "",
        "test_kernels.py emulated and exact and no-batch",
    ),
    "CUDA tokens: u forgotten": (
        TOKENS_ADAPTER, 'result.factor = call.images(factor, sizes, "u").rows;', "",
        "test_kernels.py emulated and exact and odd",
    ),
    "CUDA tokens: no bias before the activation": (
        TOKENS_ADAPTER, "to.row_bias = first.bias, ", "",
        "test_kernels.py emulated and good and mixer",
    ),
    "CUDA tokens, sm_90a: the residual has x's strides": (
        TOKENS_ADAPTER, "y.residual,", "{y.residual.data, x.rows.stride_b, x.rows.stride},",
        "test_emulated.py strides and sm90",
    ),
    "CUDA tokens, sm_90a: no bias of the norm": (
        TOKENS_ADAPTER, "norm.bias, y.scale", "{}, y.scale", "test_kernels.py sm90 and exact",
    ),
    "CUDA tokens, sm_90a: a weight taken for contiguous": (
        TOKENS_ADAPTER, "w.stride, layer.bias", "x.count, layer.bias",
        "test_emulated.py strides and sm90",
    ),
    "CUDA tokens, sm_90a: no last bias": (
        TOKENS_ADAPTER, "last.bias,  first.activation", "{}, first.activation",
        "test_kernels.py sm90 and good and mixer",
    ),
    "CUDA tokens, sm_90a: 16 bits of a float32 result": (
        TOKENS_ADAPTER, "y.dtype != call.dtype() || ", "", "test_emulated.py float32 and sm90",
    ),
    "CUDA tokens, sm_90a: u forgotten": (
        TOKENS_ADAPTER, " || y.factor.data", "", "test_kernels.py sm90 and exact and fewer",
    ),
    "CUDA tokens: a weight's gradient without the scale": (
        TOKENS_BACKWARD, "launch_scaled(call, dy, mix.scale, stream)", "dy",
        "test_kernels.py emulated and exact and token",
    ),
    "CUDA tokens: a weight's gradient without u": (
        TOKENS_BACKWARD, "dsums.factor = mix.factor.rows;\n    launch_sum", "launch_sum",
        "test_kernels.py emulated and exact and token",
    ),
    "CUDA tokens: the scale's gradient without the bias": (
        TOKENS_BACKWARD, "to.row_bias = last.bias, to.factor", "to.factor",
        "test_kernels.py emulated and good and resmlp",
    ),
    "CUDA tokens: the last weight's gradient without the activation": (
        TOKENS_BACKWARD, "operand_of(hidden, sums_rows)", "operand_of(inner, sums_rows)",
        "test_kernels.py emulated and good and mixer",
    ),
    "CUDA tokens: the activation itself in place of its slope": (
        TOKENS_BACKWARD, ", to.slope_of = inner.rows", "",
        "test_kernels.py emulated and good and mixer",
    ),
    "CUDA tokens: x's gradient without u": (
        TOKENS_BACKWARD, "dsums.factor = mix.factor.rows;\n  if (normed", "if (normed",
        "test_kernels.py emulated and exact and token",
    ),
    "CUDA tokens: x's gradient without the scale": (
        TOKENS_BACKWARD, "to.scale = mix.scale;", "",
        "test_kernels.py emulated and exact and token",
    ),
    "CUDA tokens: a bias's gradient alone forgotten": (
        TOKENS_BACKWARD, "|| of_first.w || of_first.b", "|| of_first.w",
        "test_emulated.py only and token_mlp",
    ),
    "CUDA: the mean in place of the deviation": (
        OPERANDS, "params.rstd = params.mean + rows", "params.rstd = params.mean",
        "test_kernels.py emulated and good and odd-tokens",
    ),
    "CUDA: columns taken for dense": (
        OPERANDS, "dense ? *given : torch::stable::contiguous(*given)", "*given",
        "test_kernels.py emulated and layout and odd-tokens",
    ),
    "CUDA: a residual of another dtype taken": (
        f"{OPS}/_native.py", '"dy", "residual", ', '"dy", ', "test_emulated.py told",
    ),
    "CUDA: float32 taken unasked": (
        f"{OPS}/_native.py", " and not allows_tf32()", " and False", "test_emulated.py told",
    ),
    "CUDA tokens, sm_90a: float32 taken for 16 bits": (
        f"{CUDA}/token_tiles_sm90.h",
        "(p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16) && ", "",
        "test_emulated.py portable_kernels",
    ),
    "CUDA channels, sm_90a: float32 taken for 16 bits": (
        f"{CUDA}/product_sm90.cu",
        " || (p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16)", "",
        "test_emulated.py portable_kernels",
    ),
    "CUDA channels, sm_90a: no weight in the norm's adjoint": (
        NORM, "norm.mean, norm.rstd, norm.weight};", "norm.mean, norm.rstd};",
        "test_kernels.py sm90 and good and channel_mlp_backward",
    ),
    "CUDA channels, sm_90a: LayerNorm's adjoint taken for an affine one": (
        NORM, "norm.mean, norm.rstd, norm.weight};", "nullptr, nullptr, norm.weight};",
        "test_kernels.py sm90 and good and channel_mlp_backward",
    ),
    "CUDA channels, sm_90a: a norm's bias's gradient for its weight's": (
        NORM, "adjoint.dweight = weight.data, adjoint.dbias = bias.data",
        "adjoint.dweight = bias.data, adjoint.dbias = weight.data",
        "test_emulated_channels.py sm90 and affine",
    ),
    "CUDA, sm_90a: sums of the first image alone": (
        NORM, "sums{{data, int64_t{count} * columns, columns}", "sums{{data, 0, columns}",
        "test_emulated_tokens.py exact",
    ),
    "CUDA tokens, sm_90a: x's gradient without the scale": (
        TOKENS_BACKWARD, "two ? dhidden : scaled", "two ? dhidden : dy",
        "test_emulated_tokens.py exact",
    ),
    "CUDA tokens, sm_90a: dy in the place of the hidden's gradient": (
        TOKENS_BACKWARD, "two ? dhidden : scaled", "scaled",
        "test_emulated_tokens.py exact",
    ),
    "CUDA tokens, sm_90a: the path depends on what is wanted": (
        TOKENS_BACKWARD, "if (normed && launch_with", "if (normed && wanted.x && launch_with",
        "test_emulated_tokens.py depends",
    ),
    "CUDA tokens, sm_90a: a weight in the place of its transpose": (
        f"{CUDA}/tokens.h", "torch::stable::transpose(weight, 0, 1)", "weight",
        "test_emulated_tokens.py exact",
    ),
    "CUDA channels: no bias": (
        CHANNELS, "to.column_bias = bias, to.activation", "to.activation",
        "test_emulated_channels.py exact and affine",
    ),
    "CUDA channels: no activation of shift_linear": (
        FORWARD, "result(call, y, layer.activation)", "result(call, y, Activation::kNone)",
        "test_emulated_channels.py exact and linear",
    ),
    "CUDA channels: no scale": (
        FORWARD, "to.scale = factor, ", "", "test_emulated_channels.py exact and linear",
    ),
    "CUDA channels: no residual": (
        FORWARD, ", to.residual = rest.rows", "", "test_emulated_channels.py exact and linear",
    ),
    "CUDA channels: no shift of the hidden": (
        CHANNELS, "return shift ? shift->of(hidden) : hidden;", "return hidden;",
        "test_emulated_channels.py exact and mlp-s2",
    ),
    "CUDA channels: no norm of x": (
        OPERANDS, "operand_of(rows, sums_rows, norm); }", "operand_of(rows, sums_rows); }",
        "test_emulated_channels.py exact and affine",
    ),
    "CUDA channels: H and W swapped": (
        CHANNELS, "operand.H = H_, operand.W = W_", "operand.H = W_, operand.W = H_",
        "test_emulated_channels.py exact and mlp-s2",
    ),
    "CUDA channels: the adjoint moves the same way": (
        CHANNELS, "shift_.reversed().within(H_, W_)", "shift_",
        "test_emulated_channels.py exact and wrap",
    ),
    "CUDA channels: steps back that leave the map": (
        CHANNELS, "shift_.reversed().within(H_, W_)", "shift_.reversed()",
        "test_emulated_channels.py exact and wrap",
    ),
    "CUDA channels: the adjoint without its second term": (
        CHANNELS, "if (shift_.border == Border::kKeep) {", "if (false) {",
        "test_emulated_channels.py exact and mlp-s2",
    ),
    "CUDA channels: no channels launched": (
        CHANNELS, "if (C_ == 0) return;", "", "test_emulated_channels.py bias",
    ),
    "CUDA channels: a weight's gradient without the scale": (
        BACKWARD, "return launch_scaled(call, dy, scale, stream);", "return dy;",
        "test_emulated_channels.py exact and channel_mlp",
    ),
    "CUDA channels: the gradient before the norm in place of that behind it": (
        BACKWARD, "return incoming;", "return dy;",
        "test_emulated_channels.py exact and post-affine",
    ),
    "CUDA channels: a bias's gradient before the norm": (
        BACKWARD, "launch_sum_over_rows(call, incoming", "launch_sum_over_rows(call, dy",
        "test_emulated_channels.py exact and post-affine",
    ),
    "CUDA channels: the last weight's gradient without the activation": (
        BACKWARD, "(dlast, true), hidden)", "(dlast, true), operand_of(inner, true))",
        "test_emulated_channels.py exact and channel_mlp",
    ),
    "CUDA channels: the last weight's gradient without the shift": (
        BACKWARD, "hidden.sums_rows = true;", "hidden.sums_rows = true, hidden.shift = nullptr;",
        "test_emulated_channels.py exact and mlp-s2",
    ),
    "CUDA channels: the activation itself in place of its slope": (
        BACKWARD, ", result.slope_of = inner.rows", "",
        "test_emulated_channels.py exact and channel_mlp",
    ),
    "CUDA channels: no slope after the shift's adjoint": (
        BACKWARD, "launch_activation_backward(dinner, {}, inner, first.activation,",
        "launch_activation_backward(dinner, {}, inner, Activation::kNone,",
        "test_emulated_channels.py exact and mlp-s2",
    ),
    "CUDA channels: a slope without the scale": (
        BACKWARD, "_backward(dy, scale, inner", "_backward(dy, {}, inner",
        "test_emulated_channels.py exact and linear-s2",
    ),
    "CUDA channels: scale's gradient of the sums before the activation": (
        BACKWARD, "to[3] ? again(layer.activation)", "to[3] ? again(Activation::kNone)",
        "test_emulated_channels.py exact and linear-s2",
    ),
    "CUDA channels: the first weight's gradient without the norm": (
        BACKWARD, "in.operand(true)", "operand_of(x, true)",
        "test_emulated_channels.py exact and mlp-affine",
    ),
    "CUDA channels: the norm's adjoint left out": (
        BACKWARD, "const bool normed = norm_args.kind != kNone;", "const bool normed = false;",
        "test_emulated_channels.py exact and mlp-affine",
    ),
    "CUDA channels: a bias's gradient alone forgotten": (
        BACKWARD, "&& !to[3] && !to[4]", "&& !to[3]", "test_emulated.py only and channel_mlp",
    ),
    "CUDA channels: sizes of a shift not asked for": (
        f"{OPS}/_native.py", "either(refusal_of(each), refuses_of(each))", "refuses_of(each)",
        "test_emulated_channels.py steps",
    ),
    "CUDA: rows counted in one image": (
        f"{OPS}/_native.py", "math.prod(tensor.shape[:-1])", "tensor.shape[-2]",
        "test_emulated_channels.py refused",
    ),
    "CUDA channels, sm_90a: a hidden that was moved is moved again": (
        CHANNELS, "stream);\n      return hidden;", "stream);\n      return shift->of(hidden);",
        "test_emulated_channels.py shift_mlp-s2 and sm90",
    ),
    "CUDA channels, sm_90a: the norm of x twice": (
        OPERANDS, '"the norm of x"), {}};', '"the norm of x"), norm};',
        "test_emulated_channels.py channel_mlp-affine and sm90",
    ),
    "CUDA channels, sm_90a: x in the place of its norm": (
        OPERANDS, 'return {call.images(normed, "the norm of x"), {}};', "return {x, {}};",
        "test_emulated_channels.py channel_mlp-affine and sm90",
    ),
    "CUDA channels, sm_90a: a weight's gradient without the shift": (
        BACKWARD, 'operand_of(call.images(moved, "the shift of x"), true)', "operand_of(x, true)",
        "test_emulated_channels.py exact and linear-s2 and sm90",
    ),
    "CUDA channels: a shift of dense rows": (
        CHANNELS, "            x.stride * W_,\n            x.stride,",
        "            int64_t{C_} * W_,\n            C_,",
        "test_emulated.py strides_are_followed and shift_linear",
    ),
    "CUDA tokens: the padding of a weight taken for terms": (
        f"{CUDA}/tokens.h", "torch::stable::narrow(padded, 1, 0, weight.size(1))", "padded",
        "test_kernels.py emulated and exact and token",
    ),
    "CUDA tokens, sm_90a: images of the norm one above another": (
        OPERANDS, "normed = call.empty({x.images, x.count,", "normed = call.empty({1, x.count,",
        "test_emulated.py many_images and token_mlp_backward and sm90",
    ),
    "CUDA channels, sm_90a: maps of the wrong sides": (
        CHANNELS, "return {&shift_, H_, W_};", "return {&shift_, W_, H_};",
        "test_emulated_channels.py shift_mlp-s2 and sm90",
    ),
}  # fmt: skip
