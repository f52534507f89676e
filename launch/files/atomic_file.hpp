// Writing a file whole or not at all.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace allnorm::launch {

/// A file that appears under its name only when it is complete. It is written under a temporary name in the same
/// directory and renamed by commit(); the destructor removes the temporary, and where the process was killed the next
/// one does that writes there. An existing file keeps its old content until then, and its mode and owner for good; a
/// new one follows the umask. What commit() has returned from survives a power cut.
class AtomicFile {
 public:
  /// Throws invalid_input when the directory cannot be written to, or when `path` exists and is not a regular file
  /// (a rename would replace a device such as /dev/null). A symbolic link is followed, its target is replaced. `stem`
  /// begins the temporary's name: that of the process, or of the commit that the file belongs to.
  explicit AtomicFile(std::string path, const std::string& stem = process_stem());
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  AtomicFile& operator=(AtomicFile&&) = delete;

  const std::string& path() const noexcept { return path_; }
  /// Where the file lies behind all symbolic links, and its name there. Two paths of one file have the same.
  const std::string& folder() const noexcept { return folder_; }
  const std::string& name() const noexcept { return name_; }

  /// Appends. Throws invalid_input with the system's reason, a full disk for one.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  /// Writes what is buffered and closes the temporary. After it only commit() and release() are left.
  void finish();
  /// finish(), then rename to path().
  void commit();

  /// A finished file that someone else commits.
  struct Temporary {
    std::string name{};  // in folder()
    ino_t inode = 0;     // keeps through renames
  };
  /// finish(); the temporary is the caller's from now on.
  Temporary release();

  /// Twelve digits that no other process has.
  static const std::string& process_stem();

 private:
  void flush();

  std::string path_;     // as the caller named it, for messages
  std::string folder_;   // absolute
  std::string name_;     // in folder_
  Temporary temporary_;  // without a name once it is renamed
  std::vector<std::byte> buffer_;
  int descriptor_ = -1;
};

}  // namespace allnorm::launch
