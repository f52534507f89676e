// A folder for what processes that a sweep starts write.
#pragma once

#include <stdlib.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <system_error>

#include "allnorm/error.hpp"
#include "launch/files/input_file.hpp"

namespace allnorm::launch::scale {

/// Made empty, removed at the end. Throws invalid_input where it cannot be made.
class Folder {
 public:
  Folder() {
    std::error_code error;
    path_ = (std::filesystem::temp_directory_path(error) / "allnorm-scale-XXXXXX").string();
    expect(!error, Code::invalid_input,
           [&] { return "there is no folder for temporary files (TMPDIR): " + error.message(); });
    expect(::mkdtemp(path_.data()) != nullptr, Code::invalid_input,
           [&] { return path_ + ": cannot be made: " + system_reason(errno); });
  }
  ~Folder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string file(const char* name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace allnorm::launch::scale
