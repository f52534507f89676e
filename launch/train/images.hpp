// The images of a run: which are for training and which for testing, their augmentation, and the shards of the ranks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "launch/files/data_sets.hpp"

namespace allnorm::launch::train {

/// How the training images are dealt to the ranks.
enum class Split : std::uint8_t {
  iid,     ///< every update draws its images at random for all ranks
  label,   ///< sorted by label and cut: each rank sees few classes
  domain,  ///< as iid, but each rank sees its images in another contrast and brightness
};

struct ImageShape {
  std::int64_t channels = 1, height = 1, width = 1;
  std::int64_t values() const noexcept { return channels * height * width; }
};

/// The images of one seed. Borrows the data set.
class Images {
 public:
  Images(const DataSet& data, Split split, int ranks, std::uint64_t seed);

  /// What the network sees: the canvas that images are augmented onto.
  const ImageShape& shape() const noexcept { return canvas_; }
  std::int64_t train_count() const noexcept { return static_cast<std::int64_t>(train_.size()); }
  std::int64_t test_count() const noexcept { return static_cast<std::int64_t>(test_.size()) * test_copies_; }

  /// Fixes the order of an epoch, in which every rank takes `batch` images per call and `calls` calls per update.
  void begin_epoch(std::int64_t epoch, std::int64_t batch, std::int64_t calls);
  /// Updates of the epoch; a last incomplete one is dropped.
  std::int64_t updates() const noexcept;
  /// The images (batch, channels, height, width) and labels (batch) of one call, freshly augmented.
  void fill(int rank, std::int64_t update, std::int64_t call, float* pixels, std::int64_t* labels) const;
  /// Test image `i`, the same one in every epoch; returns its label.
  std::int64_t fill_test(std::int64_t i, float* pixels) const;

 private:
  struct Source {
    const ImageSet* set;
    std::int64_t index;
  };
  std::int64_t label_of(const Source& source) const {
    return source.set->labels[static_cast<std::size_t>(source.index)];
  }

  Split split_;
  int ranks_;
  std::uint64_t seed_;
  ImageShape canvas_;
  std::vector<Source> train_, test_;
  std::int64_t test_copies_;
  std::uint64_t epoch_ = 0;
  std::int64_t batch_ = 1, calls_ = 1;
  std::vector<std::int64_t> order_;  // (train_count) positions in train_; with Split::label shard after shard
};

}  // namespace allnorm::launch::train
