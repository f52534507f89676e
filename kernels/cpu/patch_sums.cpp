// Sums of a convolution's patches, and of their products with its output: what the derivatives of the output's
// statistics by the weights are made of.
#include <algorithm>
#include <vector>

#include "allnorm/dtype.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/tile_products.hpp"
#include "src/runtime/parallel.hpp"

namespace allnorm::cpu {

namespace {

// Positions whose patches are laid out at once: few enough that their sums in the compute type lose nothing that
// matters (16 roundings), and that the patches stay in the cache.
constexpr std::int64_t block = product_terms;

template <class T>
class PatchSums {
  using C = compute_t<T>;

 public:
  explicit PatchSums(const PatchSumsArgs& args)
      : a_(args),
        group_in_(args.in_channels / args.groups),
        group_out_(args.channels / args.groups),
        taps_(args.kernel[0] * args.kernel[1] * args.kernel[2]),
        fan_in_(group_in_ * taps_),
        positions_(args.out[0] * args.out[1] * args.out[2]),
        in_space_(args.in[0] * args.in[1] * args.in[2]) {}

  // Channels [from, to) of conv group g. The tile that holds the group's first channel also sums the patches. Each
  // channel's sums are taken in the same order whatever the tile, so the bits do not depend on the tiling.
  void tile(std::int64_t g, std::int64_t from, std::int64_t to) const {
    const bool first = from == g * group_out_;
    const std::int64_t rows = to - from;
    std::vector<C> patches(static_cast<std::size_t>(block * fan_in_)), factor(static_cast<std::size_t>(rows * block)),
        sums(static_cast<std::size_t>(rows * fan_in_));
    for (std::int64_t n = 0; n < a_.samples; ++n)
      for (std::int64_t p = 0; p < positions_; p += block) {
        const std::int64_t count = std::min(block, positions_ - p);
        lay_out(g, n, p, count, patches.data());
        if (first) {
          double* out = a_.patch_sum + g * fan_in_;
          for (std::int64_t q = 0; q < count; ++q)
            for (std::int64_t i = 0; i < fan_in_; ++i)
              out[i] += static_cast<double>(patches[static_cast<std::size_t>(q * fan_in_ + i)]);
        }
        for (std::int64_t c = 0; c < rows; ++c)
          for (std::int64_t q = 0; q < count; ++q)
            factor[static_cast<std::size_t>(c * count + q)] = centred(n, from + c, p + q);
        tile_products(factor.data(), rows, patches.data(), count, fan_in_, sums.data());
        double* out = a_.product + from * fan_in_;
        for (std::size_t i = 0; i < sums.size(); ++i) out[i] += static_cast<double>(sums[i]);
      }
  }

  std::int64_t group_out() const noexcept { return group_out_; }

 private:
  // Rounded once, from the exact difference.
  C centred(std::int64_t n, std::int64_t c, std::int64_t p) const {
    const auto* x = static_cast<const T*>(a_.x);
    const std::int64_t at = a_.order == Order::channels_first ? (n * a_.channels + c) * positions_ + p
                                                              : (n * positions_ + p) * a_.channels + c;
    return static_cast<C>(static_cast<double>(load(x[at])) - a_.center[c]);
  }

  // Rows p ... p + count - 1 of (positions, fan_in) of group g and sample n; taps outside the input are 0.
  void lay_out(std::int64_t g, std::int64_t n, std::int64_t p, std::int64_t count, C* to) const {
    const auto* input = static_cast<const T*>(a_.conv_input);
    const bool channels_first = a_.order == Order::channels_first;
    const std::int64_t channel_step = channels_first ? in_space_ : 1, space_step = channels_first ? 1 : a_.in_channels;
    const T* base = input + n * a_.in_channels * in_space_ + g * group_in_ * channel_step;
    for (std::int64_t q = p; q < p + count; ++q, to += fan_in_) {
      const std::int64_t origin[3] = {q / (a_.out[1] * a_.out[2]) * a_.stride[0] - a_.padding[0],
                                      q / a_.out[2] % a_.out[1] * a_.stride[1] - a_.padding[1],
                                      q % a_.out[2] * a_.stride[2] - a_.padding[2]};
      std::int64_t tap = 0;
      for (std::int64_t i = 0; i < a_.kernel[0]; ++i)
        for (std::int64_t j = 0; j < a_.kernel[1]; ++j)
          for (std::int64_t k = 0; k < a_.kernel[2]; ++k, ++tap) {
            const std::int64_t z = origin[0] + i * a_.dilation[0], y = origin[1] + j * a_.dilation[1],
                               x = origin[2] + k * a_.dilation[2];
            const bool inside = z >= 0 && z < a_.in[0] && y >= 0 && y < a_.in[1] && x >= 0 && x < a_.in[2];
            const std::int64_t from = ((z * a_.in[1] + y) * a_.in[2] + x) * space_step;
            for (std::int64_t ci = 0; ci < group_in_; ++ci)
              to[ci * taps_ + tap] = inside ? load(base[from + ci * channel_step]) : C{0};
          }
    }
  }

  const PatchSumsArgs& a_;
  std::int64_t group_in_, group_out_, taps_, fan_in_, positions_, in_space_;
};

}  // namespace

void patch_sums(const PatchSumsArgs& args, Queue& queue) {
  visit(args.dtype, [&]<class T>(std::type_identity<T>) {
    if (args.channels == 0 || args.groups == 0) return;
    const PatchSums<T> sums(args);
    const std::int64_t width = std::max<std::int64_t>(1, (sums.group_out() + queue.threads() - 1) / queue.threads());
    const std::int64_t tiles = (sums.group_out() + width - 1) / width;
    parallel(queue, args.groups * tiles, [&](std::int64_t task) {
      const std::int64_t g = task / tiles, first = g * sums.group_out();
      const std::int64_t from = first + task % tiles * width;
      sums.tile(g, from, std::min(from + width, first + sums.group_out()));
    });
  });
}

}  // namespace allnorm::cpu
