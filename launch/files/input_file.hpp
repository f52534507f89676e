// Reading files that may be anything: what every reader of this folder shares.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "allnorm/error.hpp"

namespace allnorm::launch {

/// Throws Error{invalid_input, "FILE: what"}.
[[noreturn]] void bad_file(const std::string& path, const std::string& what, Where where = Where::here());

/// What the system says about an errno: "No space left on device".
std::string system_reason(int error);

/// Text from a file, made fit for a one-line message: quoted, control and non-ASCII bytes as \xNN, cut after 64 bytes.
std::string printable(std::string_view text);

/// The bytes that a dense tensor needs. Nothing when the product of the extents other than 0 and of `item_size`
/// exceeds 2^63-1: an empty tensor with such extents is refused too, since its strides would overflow.
std::optional<std::uint64_t> storage_bytes(std::span<const std::int64_t> extents, std::size_t item_size);

/// A regular file, opened for reading from front to back. Its size is known before anything is allocated for it.
class InputFile {
 public:
  /// Throws invalid_input when the file cannot be opened or is not a regular file. Never blocks on a fifo.
  explicit InputFile(std::string path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const noexcept { return path_; }
  std::uint64_t size() const noexcept { return size_; }
  std::uint64_t remaining() const noexcept { return size_ - position_; }
  /// Reads exactly target.size() bytes; throws invalid_input when the file has fewer.
  void read(std::span<std::byte> target);

 private:
  std::string path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;      // bytes
  std::uint64_t position_ = 0;  // bytes
};

/// The whole content of a regular file of at most `max_bytes`.
std::vector<std::byte> read_file(const std::string& path, std::uint64_t max_bytes);

/// As read_file; a file that begins as gzip files do is decompressed, whatever its name, and `max_bytes` then bounds
/// what comes out of it. Refused: a truncated stream, a wrong checksum, bytes after the last member.
std::vector<std::byte> read_gzip_file(const std::string& path, std::uint64_t max_bytes);

}  // namespace allnorm::launch
