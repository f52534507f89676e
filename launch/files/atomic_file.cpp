// Writing files whole or not at all.
#include "launch/files/atomic_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "launch/files/input_file.hpp"

namespace allnorm::launch {
namespace {

constexpr std::size_t buffer_bytes = std::size_t{1} << 16;

[[noreturn]] void cannot_write(const std::string& path, int error, Where where = Where::here()) {
  bad_file(path, "cannot be written: " + system_reason(error), where);
}

// Where the rename must go, or an error if something other than a file lies there.
std::string resolve(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) return path;
  if (error) cannot_write(path, error.value());
  if (status.type() == fs::file_type::directory) bad_file(path, "is a directory, must be a file or not exist");
  if (status.type() != fs::file_type::regular) bad_file(path, "is not a regular file, must be one or not exist");
  const fs::path target = fs::canonical(path, error);
  return error ? path : target.string();
}

// The name does not contain the target's, which may already be as long as the file system allows.
std::string temporary_name(const std::string& target) {
  static std::atomic<unsigned long> counter{0};
  const std::size_t slash = target.rfind('/');
  const std::string folder = slash == std::string::npos ? "" : target.substr(0, slash + 1);
  return folder + ".allnorm-" + std::to_string(::getpid()) + "-" + std::to_string(counter++) + ".tmp";
}

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)), target_(resolve(path_)) {
  buffer_.reserve(buffer_bytes);
  do {  // the name may be taken: left by a killed process, or in use on another host that shares the directory
    temporary_ = temporary_name(target_);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (descriptor_ < 0 && (errno == EEXIST || errno == EINTR));
  if (descriptor_ < 0) cannot_write(path_, errno);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      target_(std::move(other.target_)),
      temporary_(std::exchange(other.temporary_, {})),
      buffer_(std::move(other.buffer_)),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (descriptor_ < 0) bad_file(path_, "is finished, must be open to be written to");
  while (!bytes.empty()) {
    const std::size_t count = std::min(bytes.size(), buffer_bytes - buffer_.size());
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(count));
    bytes = bytes.subspan(count);
    if (buffer_.size() == buffer_bytes) flush();
  }
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

void AtomicFile::flush() {
  std::span<const std::byte> left(buffer_);
  while (!left.empty()) {
    const ssize_t put = ::write(descriptor_, left.data(), left.size());
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) cannot_write(path_, put < 0 ? errno : EIO);
    left = left.subspan(static_cast<std::size_t>(put));
  }
  buffer_.clear();
}

void AtomicFile::finish() {
  if (descriptor_ < 0) return;
  flush();
  if (::close(std::exchange(descriptor_, -1)) != 0) cannot_write(path_, errno);  // some file systems report late
  buffer_ = {};
}

void AtomicFile::commit() {
  finish();
  if (std::rename(temporary_.c_str(), target_.c_str()) != 0) cannot_write(path_, errno);
  temporary_.clear();
}

void StagedFiles::add(AtomicFile file) {
  for (const AtomicFile& other : files_)
    if (other.path() == file.path()) bad_file(file.path(), "is written twice in one run, must be written once");
  file.finish();
  files_.push_back(std::move(file));
}

void StagedFiles::commit() {
  for (AtomicFile& file : files_) file.commit();
  files_.clear();
}

}  // namespace allnorm::launch
