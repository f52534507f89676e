// The images of a run: split, augmentation, shards.
#include "launch/train/images.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <numeric>

#include "launch/random.hpp"

namespace allnorm::launch::train {
namespace {

// Of a data set without a test set of its own, this share is for training: 1280 of the 1797 digits.
constexpr std::int64_t train_share = 1280, of_all = 1797;
constexpr std::int64_t copies_of_small_test_set = 4;
constexpr double degree = std::numbers::pi / 180;

/// How an image is put onto the canvas. Small images get room to move and are enlarged to fill it.
struct Placement {
  double zoom, shift;  // canvas pixels per image pixel, largest shift in canvas pixels
};
bool is_small(const ImageSet& set) { return std::min(set.height, set.width) < 16; }
Placement placement(const ImageSet& set) {
  if (is_small(set)) return {1.3, 1.5};
  return {1.0, 0.125 * static_cast<double>(std::min(set.height, set.width))};
}
ImageShape canvas_of(const ImageSet& set) {
  const std::int64_t room = is_small(set) ? 3 : 2;  // in halves: 12x12 for 8x8
  return {set.channels, set.height * room / 2, set.width * room / 2};
}

struct Domain {
  float contrast, brightness;
};
constexpr std::array<Domain, 4> domains{{{1, 0}, {0.5f, 0.5f}, {1.5f, -0.5f}, {-1, 1}}};

/// One plane at (y, x), zero outside.
double bilinear(const float* plane, std::int64_t height, std::int64_t width, double y, double x) {
  const double top = std::floor(y), left = std::floor(x);
  const auto at = [&](double row, double column) {
    if (row < 0 || column < 0 || row >= static_cast<double>(height) || column >= static_cast<double>(width)) return 0.0;
    return static_cast<double>(plane[static_cast<std::int64_t>(row) * width + static_cast<std::int64_t>(column)]);
  };
  const double dy = y - top, dx = x - left;
  return (1 - dy) * ((1 - dx) * at(top, left) + dx * at(top, left + 1)) +
         dy * ((1 - dx) * at(top + 1, left) + dx * at(top + 1, left + 1));
}

/// A random shift, rotation, zoom, contrast, brightness and noise. The numbers are drawn in the order of this list.
void augment(const ImageSet& set, std::int64_t index, const ImageShape& canvas, Random random, float* pixels) {
  const Placement place = placement(set);
  const double shift_y = random.uniform(-place.shift, place.shift), shift_x = random.uniform(-place.shift, place.shift);
  const double angle = random.uniform(-15, 15) * degree;
  const double zoom = place.zoom * std::exp(random.uniform(-0.15, 0.15));
  const double contrast = std::exp(random.uniform(-0.3, 0.3)), brightness = random.uniform(-0.2, 0.2);
  const double sine = std::sin(angle) / zoom, cosine = std::cos(angle) / zoom;
  const double canvas_y = 0.5 * static_cast<double>(canvas.height - 1),
               image_y = 0.5 * static_cast<double>(set.height - 1);
  const double canvas_x = 0.5 * static_cast<double>(canvas.width - 1),
               image_x = 0.5 * static_cast<double>(set.width - 1);
  const float* image = set.pixels.data() + index * set.channels * set.height * set.width;
  for (std::int64_t c = 0; c < canvas.channels; ++c, image += set.height * set.width)
    for (std::int64_t row = 0; row < canvas.height; ++row)
      for (std::int64_t column = 0; column < canvas.width; ++column) {
        const double y = static_cast<double>(row) - canvas_y - shift_y,
                     x = static_cast<double>(column) - canvas_x - shift_x;
        const double value =
            bilinear(image, set.height, set.width, image_y + cosine * y - sine * x, image_x + sine * y + cosine * x);
        *pixels++ = static_cast<float>(contrast * value + brightness + 0.1 * random.normal());
      }
}

void move_to_domain(std::int64_t which, const ImageShape& canvas, float* pixels) {
  const Domain& domain = domains[static_cast<std::size_t>(which) % domains.size()];
  std::for_each(pixels, pixels + canvas.values(), [&](float& p) { p = domain.contrast * p + domain.brightness; });
}

}  // namespace

Images::Images(const DataSet& data, Split split, int ranks, std::uint64_t seed)
    : split_(split),
      ranks_(ranks),
      seed_(seed),
      canvas_(canvas_of(data.train)),
      test_copies_(is_small(data.train) ? copies_of_small_test_set : 1) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(data.train.count));
  std::iota(all.begin(), all.end(), 0);
  Random(Purpose::split, {seed}).shuffle(all);
  const std::size_t cut = data.test ? all.size() : all.size() * train_share / of_all;
  for (std::size_t i = 0; i < all.size(); ++i) (i < cut ? train_ : test_).push_back({&data.train, all[i]});
  if (data.test)
    for (std::int64_t i = 0; i < data.test->count; ++i) test_.push_back({&*data.test, i});
  if (split == Split::label)
    std::stable_sort(train_.begin(), train_.end(),
                     [&](const Source& a, const Source& b) { return label_of(a) < label_of(b); });
  begin_epoch(0, 1, 1);
}

void Images::begin_epoch(std::int64_t epoch, std::int64_t batch, std::int64_t calls) {
  epoch_ = static_cast<std::uint64_t>(epoch);
  batch_ = batch;
  calls_ = calls;
  order_.resize(train_.size());
  std::iota(order_.begin(), order_.end(), 0);
  Random random(Purpose::order, {seed_, epoch_});
  if (split_ != Split::label) return random.shuffle(order_);
  const std::size_t shard = train_.size() / static_cast<std::size_t>(ranks_);
  for (std::size_t rank = 0; rank < static_cast<std::size_t>(ranks_); ++rank) {
    const auto first = order_.begin() + static_cast<std::ptrdiff_t>(rank * shard);
    std::vector<std::int64_t> part(first, first + static_cast<std::ptrdiff_t>(shard));
    random.shuffle(part);
    std::copy(part.begin(), part.end(), first);
  }
}

std::int64_t Images::updates() const noexcept { return train_count() / (ranks_ * batch_ * calls_); }

void Images::fill(int rank, std::int64_t update, std::int64_t call, float* pixels, std::int64_t* labels) const {
  for (std::int64_t i = 0; i < batch_; ++i) {
    // iid: an update's images lie together, call after call, rank after rank: one rank with the whole batch gets the
    // same ones. label: every rank walks through its own shard.
    const std::int64_t position = split_ == Split::label
                                      ? rank * (train_count() / ranks_) + (update * calls_ + call) * batch_ + i
                                      : ((update * calls_ + call) * ranks_ + rank) * batch_ + i;
    const auto which = static_cast<std::uint64_t>(order_[static_cast<std::size_t>(position)]);
    const Source& source = train_[which];
    float* to = pixels + i * canvas_.values();
    augment(*source.set, source.index, canvas_, Random(Purpose::augment_train, {seed_, epoch_, which}), to);
    if (split_ == Split::domain) move_to_domain(rank, canvas_, to);
    labels[i] = label_of(source);
  }
}

std::int64_t Images::fill_test(std::int64_t i, float* pixels) const {
  const auto count = static_cast<std::int64_t>(test_.size());
  const Source& source = test_[static_cast<std::size_t>(i % count)];
  // The key is the position in the test set: the random numbers are those of every seed.
  augment(*source.set, source.index, canvas_, Random(Purpose::augment_test, {static_cast<std::uint64_t>(i)}), pixels);
  if (split_ == Split::domain) move_to_domain(i, canvas_, pixels);
  return label_of(source);
}

}  // namespace allnorm::launch::train
