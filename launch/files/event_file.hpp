// Files of scalars over steps that TensorBoard reads: records of TFRecord with messages of tensorflow.Event.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "launch/files/growing_file.hpp"

namespace allnorm::launch {

using Scalars = std::vector<std::pair<std::string, float>>;  // tag, value

/// `data` as a record: its length, the length's checksum, itself, its own.
std::string tf_record(std::string_view data);
/// An event with scalars; `time` in seconds since 1970.
std::string scalars_event(double time, std::int64_t step, const Scalars& scalars);

/// One run of TensorBoard: a file in a folder of its own, which is made. An older one of the same run is replaced.
class EventFile {
 public:
  /// Throws invalid_input where folder or file cannot be written.
  explicit EventFile(const std::string& folder);
  void write(std::int64_t step, const Scalars& scalars);

 private:
  GrowingFile file_;
};

}  // namespace allnorm::launch
