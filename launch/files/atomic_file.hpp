// Writing files whole or not at all.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace allnorm::launch {

/// A file that appears under its name only when it is complete. It is written under a temporary name in the same
/// directory and renamed by commit(); the destructor removes the temporary. An existing file keeps its old content
/// until then. Safe against a failing program, not against a power cut: nothing is synced to the disk.
class AtomicFile {
 public:
  /// Throws invalid_input when the directory cannot be written to, or when `path` exists and is not a regular file
  /// (a rename would replace a device such as /dev/null). A symbolic link is followed, its target is replaced.
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  AtomicFile& operator=(AtomicFile&&) = delete;

  const std::string& path() const noexcept { return path_; }

  /// Appends. Throws invalid_input with the system's reason, a full disk for one.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  /// Writes what is buffered and closes the temporary. After it only commit() is left.
  void finish();
  /// finish(), then rename to path().
  void commit();

 private:
  void flush();

  std::string path_;       // as the caller named it, for messages
  std::string target_;     // path_ behind symbolic links
  std::string temporary_;  // empty once it is renamed
  std::vector<std::byte> buffer_;
  int descriptor_ = -1;
};

/// Several files that appear together: all are complete before the first gets its name. Should a rename fail after
/// all, those before it stay.
class StagedFiles {
 public:
  /// Finishes `file` and keeps it. Throws invalid_input when it cannot be finished or its path is staged already.
  void add(AtomicFile file);
  /// Gives every file its name. Without it the destructor removes them all.
  void commit();

 private:
  std::vector<AtomicFile> files_;
};

}  // namespace allnorm::launch
