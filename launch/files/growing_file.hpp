// A file that grows while a run goes on.
#pragma once

#include <string>
#include <string_view>

namespace allnorm::launch {

/// Records are on disk as soon as they are there, and where the disk is full as soon as it is not: they wait, with one
/// warning, and no part of a record stays in the file.
class GrowingFile {
 public:
  /// Empties the file. Throws invalid_input where it cannot be written. Without a path records go nowhere.
  explicit GrowingFile(const std::string& path = {});
  ~GrowingFile();
  GrowingFile(GrowingFile&& other) noexcept;
  GrowingFile& operator=(GrowingFile&& other) noexcept;

  explicit operator bool() const noexcept { return descriptor_ >= 0; }
  void append(std::string_view record);

 private:
  std::string path_, waiting_{};
  int descriptor_ = -1;
  bool waited_ = false;
};

}  // namespace allnorm::launch
