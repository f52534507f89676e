// Writing a file whole or not at all.
#include "launch/files/atomic_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "launch/files/input_file.hpp"
#include "launch/files/leftovers.hpp"

namespace allnorm::launch {
namespace {

constexpr std::size_t buffer_bytes = std::size_t{1} << 16;

[[noreturn]] void cannot_write(const std::string& path, int error, Where where = Where::here()) {
  bad_file(path, "cannot be written: " + system_reason(error), where);
}

// Where the rename must go, or an error if something other than a file lies there.
std::filesystem::path resolve(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (error && status.type() != fs::file_type::not_found) cannot_write(path, error.value());
  if (status.type() == fs::file_type::directory) bad_file(path, "is a directory, must be a file or not exist");
  const bool there = status.type() != fs::file_type::not_found;
  if (there && status.type() != fs::file_type::regular)
    bad_file(path, "is not a regular file, must be one or not exist");
  if (there) {
    fs::path target = fs::canonical(path, error);
    if (!error) return target;
  }
  const fs::path given(path);
  const fs::path folder = fs::canonical(given.has_parent_path() ? given.parent_path() : fs::path("."), error);
  if (error) cannot_write(path, error.value());
  return folder / given.filename();
}

// The name does not contain the target's, which may already be as long as the file system allows.
std::string temporary_name(const std::string& stem) {
  static std::atomic<unsigned long> counter{0};
  return leftover_name(stem, Leftover::temporary, counter++);
}

// A file that replaces another keeps its mode, and its owner as far as the system lets it.
void imitate(int descriptor, const struct stat& old) {
  const bool same = ::fchown(descriptor, old.st_uid, old.st_gid) == 0 ||
                    ::fchown(descriptor, static_cast<uid_t>(-1), old.st_gid) == 0;
  // In another group, the mode's rights of the group would go to others than before.
  ::fchmod(descriptor, old.st_mode & (same ? 0777 : 0707));
}

}  // namespace

const std::string& AtomicFile::process_stem() {
  static const std::string stem = stem_of(new_number());
  return stem;
}

AtomicFile::AtomicFile(std::string path, const std::string& stem) : path_(std::move(path)) {
  const std::filesystem::path target = resolve(path_);
  folder_ = target.parent_path().string();
  name_ = target.filename().string();
  recover_once(folder_, 0);
  buffer_.reserve(buffer_bytes);
  struct stat status {};
  const bool replaces = ::stat(target.c_str(), &status) == 0;
  do {  // the name may be taken, or its file be swept as a leftover until it is locked
    temporary_.name = temporary_name(stem);
    const std::string temporary = folder_ + "/" + temporary_.name;
    descriptor_ = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, replaces ? 0600 : 0666);
    if (descriptor_ >= 0 && !lock_new(descriptor_)) {
      ::close(std::exchange(descriptor_, -1));
      errno = EEXIST;
    }
  } while (descriptor_ < 0 && (errno == EEXIST || errno == EINTR));
  if (descriptor_ < 0) {
    temporary_.name.clear();
    cannot_write(path_, errno);
  }
  if (replaces) imitate(descriptor_, status);
  if (::fstat(descriptor_, &status) == 0) temporary_.inode = status.st_ino;
}

AtomicFile::~AtomicFile() {
  if (!temporary_.name.empty()) ::unlink((folder_ + "/" + temporary_.name).c_str());
  if (descriptor_ >= 0) ::close(descriptor_);
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      folder_(std::move(other.folder_)),
      name_(std::move(other.name_)),
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
  if (const int error = write_all(descriptor_, std::as_bytes(std::span(buffer_)))) cannot_write(path_, error);
  buffer_.clear();
}

void AtomicFile::finish() {
  if (descriptor_ < 0) return;
  flush();
  if (::close(std::exchange(descriptor_, -1)) != 0) cannot_write(path_, errno);  // some file systems report late
  buffer_ = {};
}

void AtomicFile::commit() {
  const std::string temporary = folder_ + "/" + temporary_.name;
  if (descriptor_ >= 0) {
    flush();
    // Without it a power cut could leave the new name with half of the content. It stays open, and so locked, until it
    // has its name.
    if (::fsync(descriptor_) != 0 && errno != EINVAL && errno != ENOTSUP) cannot_write(path_, errno);
  }
  if (::rename(temporary.c_str(), (folder_ + "/" + name_).c_str()) != 0) cannot_write(path_, errno);
  temporary_.name.clear();
  finish();
  sync_folder(folder_);
}

AtomicFile::Temporary AtomicFile::release() {
  finish();
  return std::exchange(temporary_, {});
}

}  // namespace allnorm::launch
