// channel_mlp, shift_linear and shift_mlp on the CPU: a tile of positions at a time goes through
// the layers. A shift between two layers takes two passes over the positions, one before it is
// gathered and one after.
#include "channels.h"

namespace shiftmlp {
namespace {

const std::string kNone = "none";

// Hidden channels that are at hand at a time.
constexpr int64_t kChunk = 512;

template <class Acc>
void channel_mlp_as(const Tensor& result, const Tensor& input, const NormArgs& norm_args,
                    const Linear<Acc>& first, const Linear<Acc>& last, const NormArgs& post,
                    const OptionalTensor& scale, const OptionalTensor& residual) {
  const Finish<Acc> finish(result, scale, residual, post);
  const Images x = Images::of(input, Acc{}, "x");
  check_shape(x.x, {1, finish.y.rows, first.K}, "x");
  STD_TORCH_CHECK(first.N == last.K && last.N == finish.y.columns, "weights do not fit");
  const ChannelNorm<Acc> norm(norm_args, x.columns);
  const bool paired = first.pairs() && last.pairs();
  const int64_t chunk = std::min(first.N, kChunk);
  const int64_t in_rows = tile_rows<Acc>(first.K, paired);
  const int64_t inner_rows = tile_rows<Acc>(chunk, paired), rows = in_rows + inner_rows + last.N;
  const Tiling<Acc> tiling(rows, x.rows, paired);
  const int64_t lanes = tiling.lanes;
  const int64_t panel_size = engine<Acc>().scratch(std::max(first.K, chunk), lanes);
  const int64_t memory = rows * lanes + panel_size + 4 * 16;
  const int64_t work = first.N * (first.K + last.N);
  for_each_tile<Acc>(
      x.rows, tiling, memory, work,
      [&](int64_t position, int64_t count, int64_t blocks, auto& scratch) {
        Acc *in = scratch.take(in_rows * lanes), *inner = scratch.take(inner_rows * lanes);
        Acc *out = scratch.take(last.N * lanes), *panel = scratch.take(panel_size);
        norm.pack(x.at(0, position, 0), count, x.columns, paired, in);
        int64_t begin = 0, end;
        do {
          end = std::min(begin + chunk, first.N);
          first.part(in, count, inner, panel, begin, end, 0, first.K, {paired, paired});
          last.part(inner, count, out, panel, 0, last.N, begin, end, {paired, false});
          begin = end;
        } while (end < first.N);
        finish(out, position, count, blocks);
      });
}

// Pixel (h, w) of a shifted image.
template <class T>
void gather(const Image<T>& image, int32_t h, int32_t w, const Shift& shift, int32_t C, T* to) {
  for (int32_t g = 0; g <= shift.count; ++g) {
    const Channels channels = shift.channels(g, C);
    const bool keep = shift.border == Border::kKeep;
    const T* from = Shifted<T>(image, h, shift.steps[g], keep).at(w);
    if (from != nullptr && channels.stride == 1) {
      const int32_t count = std::max(0, channels.end - channels.begin);
      std::memcpy(to + channels.begin, from + channels.begin, count * sizeof(T));
      continue;
    }
    for (int32_t c = channels.begin; c < channels.end; c += channels.stride) {
      to[c] = from == nullptr ? T{} : from[c];
    }
  }
}

template <class Acc>
void shift_linear_as(const Tensor& result, const Tensor& input, const Linear<Acc>& linear,
                     const Shift& unfitted, const OptionalTensor& scale,
                     const OptionalTensor& residual) {
  const Finish<Acc> finish(result, scale, residual, {kNone, std::nullopt, std::nullopt, 0});
  const Map x(input);
  const DType dtype = readable<Acc>(x.x, "x");
  linear.check_rows(x.C);
  const int64_t pixels = int64_t{x.H} * x.W;
  int64_t positions = 1;
  for (int64_t dim = 0; dim + 1 < input.dim(); ++dim) positions *= input.size(dim);
  check_shape(result, {1, positions, linear.N}, "y");
  if (positions == 0) return;
  const Shift shift = unfitted.within(x.H, x.W);
  const bool paired = linear.pairs();
  const int64_t in_rows = tile_rows<Acc>(linear.K, paired), rows = in_rows + linear.K + linear.N;
  const Tiling<Acc> tiling(rows, finish.y.rows, paired);
  const int64_t lanes = tiling.lanes, panel_size = engine<Acc>().scratch(linear.K, lanes);
  const int64_t memory = rows * lanes + panel_size + 4 * 16;
  for_each_tile<Acc>(
      finish.y.rows, tiling, memory, linear.N * linear.K,
      [&](int64_t position, int64_t count, int64_t blocks, auto& scratch) {
        Acc *in = scratch.take(in_rows * lanes), *out = scratch.take(linear.N * lanes);
        Acc* const panel = scratch.take(panel_size);
        Acc* gathered = scratch.take(linear.K * lanes);  // in x's type, which is no larger
        with_int<2, 4, 8>(x.x.element_size(), [&](auto size) {
          using T = Bits<decltype(size)::value>;
          const T* data = static_cast<const T*>(x.x.const_data_ptr());
          for (int64_t i = 0; i < count && x.C > 0; ++i) {
            const int64_t image = (position + i) / pixels, pixel = (position + i) % pixels;
            const Image<T> from{
                data + image * x.x.stride(0), x.H, x.W, x.x.stride(1), x.x.stride(2),
                shift.border == Border::kWrap};
            gather(from, pixel / x.W, pixel % x.W, shift, x.C,
                   reinterpret_cast<T*>(gathered) + i * x.C);
          }
        });
        engine<Acc>().pack({{gathered, dtype, x.C}, count, x.C, true, {}, nullptr, {}, {}, paired},
                           in);
        linear(in, count, out, panel, {paired, false});
        finish(out, position, count, blocks);
      });
}

// For every group of channels and pixel of a map, the pixel that a shift reads, or -1 for zero.
std::vector<int32_t> sources(const Shift& shift, int32_t H, int32_t W) {
  std::vector<int32_t> pixels(int64_t{H} * W), found;
  for (size_t p = 0; p < pixels.size(); ++p) pixels[p] = static_cast<int32_t>(p);
  const Image<int32_t> image{pixels.data(), H, W, W, 1, shift.border == Border::kWrap};
  for (int32_t g = 0; g <= shift.count; ++g) {
    for (int32_t h = 0; h < H; ++h) {
      const Shifted<int32_t> row(image, h, shift.steps[g], shift.border == Border::kKeep);
      for (int32_t w = 0; w < W; ++w) {
        const int32_t* at = row.at(w);
        found.push_back(at == nullptr ? -1 : *at);
      }
    }
  }
  return found;
}

template <class Acc>
void shift_mlp_as(const Tensor& result, const Tensor& input, int64_t H, int64_t W,
                  const NormArgs& norm_args, const Linear<Acc>& first, const Linear<Acc>& last,
                  const Shift& unfitted, const NormArgs& post, const OptionalTensor& scale,
                  const OptionalTensor& residual) {
  constexpr int64_t kBytesAtATime = 1 << 25;  // of hidden maps
  const Finish<Acc> finish(result, scale, residual, post);
  const Images x = Images::of(input, Acc{}, "x");
  check_shape(x.x, {1, finish.y.rows, first.K}, "x");
  STD_TORCH_CHECK(first.N == last.K && last.N == finish.y.columns, "weights do not fit");
  STD_TORCH_CHECK(0 < H && H <= kMaxSide && 0 < W && W <= kMaxSide && first.N <= kMaxSide,
                  "H, W and the hidden channels must be at most ", kMaxSide);
  const int64_t pixels = H * W, D = first.N;
  STD_TORCH_CHECK(x.rows % pixels == 0, "H and W do not fit x");
  if (x.rows == 0) return;
  const ChannelNorm<Acc> norm(norm_args, x.columns);
  const Shift shift = unfitted.within(H, W);
  const std::vector<int32_t> source = sources(shift, H, W);

  // A paired map holds words of two channels, which a shift must not part.
  bool paired = first.pairs() && last.pairs();
  for (int32_t g = 0; g <= shift.count; ++g) {
    const Channels channels = shift.channels(g, D);
    const bool none = channels.begin >= channels.end;
    paired = paired && (none || (channels.stride == 1 && channels.begin % 2 == 0));
  }
  const int64_t in_rows = tile_rows<Acc>(first.K, paired);
  const int64_t hidden_rows = tile_rows<Acc>(D, paired), map_rows = paired ? ceil_div(D, 2) : D;

  const int64_t unit = engine<Acc>().lanes;
  const int64_t image_bytes = pixels * map_rows * static_cast<int64_t>(sizeof(Acc));
  const int64_t at_a_time = std::max<int64_t>(1, kBytesAtATime / (image_bytes + 1)) * pixels;
  const int64_t pitch = ceil_div(std::min(at_a_time, x.rows), unit) * unit + 16;  // no power of two
  constexpr int64_t kMargin = 16;  // that the engine reads, too
  Scratch<Acc> map_memory(map_rows * pitch + 2 * kMargin);
  Acc* const map = map_memory.take(map_rows * pitch + 2 * kMargin) + kMargin;

  const int64_t rows_in_tiles = std::max(in_rows, last.N) + hidden_rows;
  const Tiling<Acc> tiling(rows_in_tiles, x.rows, paired);
  const int64_t lanes = tiling.lanes;
  const int64_t panel_size = engine<Acc>().scratch(std::max(first.K, D), lanes);
  const int64_t memory = rows_in_tiles * lanes + panel_size + 3 * 16;
  for (int64_t begin = 0; begin < x.rows; begin += at_a_time) {
    const int64_t rows = std::min(at_a_time, x.rows - begin);
    for_each_tile<Acc>(rows, tiling, memory, D * first.K,
                       [&](int64_t position, int64_t count, int64_t, auto& scratch) {
                         Acc *in = scratch.take(in_rows * lanes), *panel = scratch.take(panel_size);
                         norm.pack(x.at(0, begin + position, 0), count, x.columns, paired, in);
                         const Rows hidden{map + position, kDType<Acc>, pitch};
                         first.apply(in, count, {hidden, D, count, false, {}, nullptr, {}, {}},
                                     panel, {paired, paired});
                       });
    for_each_tile<Acc>(
        rows, tiling, memory, D * last.N,
        [&](int64_t position, int64_t count, int64_t blocks, auto& scratch) {
          Acc* const out = scratch.take(last.N * lanes);
          Acc* const hidden = scratch.take(hidden_rows * lanes);
          Acc* const panel = scratch.take(panel_size);
          int64_t from[kMaxLanes];
          for (int32_t g = 0; g <= shift.count; ++g) {
            for (int64_t i = 0; i < blocks * unit; ++i) {
              const int64_t pixel = (position + i) % pixels, image = position + i - pixel;
              const int32_t at = source[g * pixels + pixel];
              from[i] = at < 0 || i >= count ? -1 : image + at;
            }
            Channels rows = shift.channels(g, D);
            if (paired) rows.begin = (rows.begin + 1) / 2, rows.end = (rows.end + 1) / 2;
            engine<Acc>().gather(
                {map, pitch, from, hidden_rows, blocks, rows.begin, rows.end, rows.stride}, hidden);
          }
          for (int64_t b = 0; b < blocks; ++b) {
            Acc* const block = hidden + b * hidden_rows * unit;
            std::fill(block + map_rows * unit, block + hidden_rows * unit, Acc{});
          }
          last(hidden, count, out, panel, {paired, false});
          finish(out, begin + position, count, blocks);
        });
  }
}

void channel_mlp(const Tensor& y, const Tensor& x, const std::string& norm,
                 const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, double eps,
                 const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
                 const OptionalTensor& b2, const std::string& activation,
                 const std::string& post_norm, const OptionalTensor& post_norm_weight,
                 const OptionalTensor& post_norm_bias, double post_eps, const OptionalTensor& scale,
                 const OptionalTensor& residual) {
  with_accumulator(y, [&](auto zero) {
    using Acc = decltype(zero);
    channel_mlp_as<Acc>(y, x, {norm, norm_weight, norm_bias, eps},
                        {w1, b1, activation_of(activation), "w1"},
                        {w2, b2, Activation::kNone, "w2"},
                        {post_norm, post_norm_weight, post_norm_bias, post_eps}, scale, residual);
  });
}

void shift_linear(const Tensor& y, const Tensor& x, const Tensor& weight,
                  const OptionalTensor& bias, const std::string& shift,
                  const std::string& activation, const OptionalTensor& scale,
                  const OptionalTensor& residual) {
  with_accumulator(y, [&](auto zero) {
    using Acc = decltype(zero);
    shift_linear_as<Acc>(y, x, {weight, bias, activation_of(activation)}, Shift::parse(shift),
                         scale, residual);
  });
}

void shift_mlp(const Tensor& y, const Tensor& x, int64_t H, int64_t W, const std::string& norm,
               const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, double eps,
               const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
               const OptionalTensor& b2, const std::string& shift, const std::string& activation,
               const std::string& post_norm, const OptionalTensor& post_norm_weight,
               const OptionalTensor& post_norm_bias, double post_eps, const OptionalTensor& scale,
               const OptionalTensor& residual) {
  with_accumulator(y, [&](auto zero) {
    using Acc = decltype(zero);
    shift_mlp_as<Acc>(y, x, H, W, {norm, norm_weight, norm_bias, eps},
                      {w1, b1, activation_of(activation), "w1"}, {w2, b2, Activation::kNone, "w2"},
                      Shift::parse(shift), {post_norm, post_norm_weight, post_norm_bias, post_eps},
                      scale, residual);
  });
}

}  // namespace
}  // namespace shiftmlp

STABLE_TORCH_LIBRARY_IMPL(shiftmlp_cpu, CPU, m) {
  m.impl("channel_mlp", TORCH_BOX(&shiftmlp::channel_mlp));
  m.impl("shift_linear", TORCH_BOX(&shiftmlp::shift_linear));
  m.impl("shift_mlp", TORCH_BOX(&shiftmlp::shift_mlp));
}
