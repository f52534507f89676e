#include "launch/files/growing_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <span>
#include <utility>

#include "launch/files/input_file.hpp"
#include "launch/files/leftovers.hpp"
#include "launch/terminal.hpp"

namespace allnorm::launch {

GrowingFile::GrowingFile(const std::string& path) : path_(path) {
  if (path.empty()) return;
  descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) bad_file(path, "cannot be written: " + system_reason(errno));
}

GrowingFile::~GrowingFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

GrowingFile::GrowingFile(GrowingFile&& other) noexcept { *this = std::move(other); }

GrowingFile& GrowingFile::operator=(GrowingFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(waiting_, other.waiting_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(waited_, other.waited_);
  return *this;
}

void GrowingFile::append(std::string_view record) {
  if (descriptor_ < 0) return;
  waiting_ += record;
  const bool waited = waited_;
  const off_t end = ::lseek(descriptor_, 0, SEEK_CUR);
  const int error = write_all(descriptor_, std::as_bytes(std::span(waiting_)));
  waited_ = error != 0;
  if (error == 0) {
    waiting_.clear();
  } else if (end >= 0 && ::ftruncate(descriptor_, end) == 0) {
    ::lseek(descriptor_, end, SEEK_SET);
  }
  if (waited_ && !waited)
    warn(path_ + ": cannot be written: " + system_reason(error) + "; its lines wait until it can be");
}

}  // namespace allnorm::launch
