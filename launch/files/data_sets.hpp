// Labelled images for training, in the formats in which the classic data sets are given away.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace allnorm::launch {

struct ImageSet {
  std::int64_t count = 0, channels = 0, height = 0, width = 0;
  int classes = 0;
  std::vector<float> pixels;  // (count, channels, height, width), 0 black to 1 white
  std::vector<int> labels;    // (count), 0 to classes - 1
  std::string name;           // "digits", "idx", "cifar-10"
};

struct DataSet {
  ImageSet train;
  std::optional<ImageSet> test;  // where the data set has its own; otherwise the caller splits `train`
};

/// Loads the one data set that lies in `folder`, recognised by its files:
///   digits   digits.csv.gz: per line 64 values 0..16 of an 8x8 image, then the label 0..9
///   idx      MNIST and Fashion-MNIST: train-images-idx3-ubyte, train-labels-idx1-ubyte, and t10k-* for the test
///            set; each may end in .gz
///   cifar-10 data_batch_1.bin to data_batch_5.bin and test_batch.bin
/// Throws invalid_input, naming the file, what it was and what it must be.
DataSet load_data_set(const std::string& folder);

}  // namespace allnorm::launch
