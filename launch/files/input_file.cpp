// Reading files that may be anything: opening, sizes, text for messages.
#include "launch/files/input_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "allnorm/sizes.hpp"

namespace allnorm::launch {
namespace {

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a fifo";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

}  // namespace

void bad_file(const std::string& path, const std::string& what, Where where) {
  fail(Code::invalid_input, (path.empty() ? "''" : path) + ": " + what, where);
}

std::string system_reason(int error) { return std::generic_category().message(error); }

std::string printable(std::string_view text) {
  constexpr std::size_t longest = 64;
  constexpr char digits[] = "0123456789abcdef";
  std::string result = "'";
  for (const char c : text.substr(0, longest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f)
      result += c;
    else
      result += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
  }
  return result + (text.size() > longest ? "...'" : "'");
}

std::optional<std::uint64_t> storage_bytes(std::span<const std::int64_t> extents, std::size_t item_size) {
  std::vector<std::int64_t> sizes(extents.begin(), extents.end());
  sizes.push_back(static_cast<std::int64_t>(item_size));
  return product(sizes);
}

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  // Without O_NONBLOCK, opening a fifo waits for its writer.
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) bad_file(path_, "cannot be opened: " + system_reason(errno));
  struct stat status {};
  const int stat_error = ::fstat(descriptor_, &status) == 0 ? 0 : errno;
  if (stat_error == 0 && S_ISREG(status.st_mode)) {
    size_ = static_cast<std::uint64_t>(status.st_size);
    return;
  }
  ::close(descriptor_);  // the destructor of an object that was never made does not run
  if (stat_error != 0) bad_file(path_, "cannot be examined: " + system_reason(stat_error));
  bad_file(path_, std::string("is ") + kind_of(status.st_mode) + ", must be a regular file");
}

InputFile::~InputFile() { ::close(descriptor_); }

void InputFile::read(std::span<std::byte> target) {
  if (target.size() > remaining())
    bad_file(path_, "ends after " + std::to_string(size_) + " bytes, must have at least " +
                        std::to_string(position_ + target.size()));
  while (!target.empty()) {
    const ssize_t got = ::read(descriptor_, target.data(), target.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) bad_file(path_, "cannot be read: " + system_reason(errno));
    if (got == 0) bad_file(path_, "became shorter while it was read");
    position_ += static_cast<std::uint64_t>(got);
    target = target.subspan(static_cast<std::size_t>(got));
  }
}

std::vector<std::byte> read_file(const std::string& path, std::uint64_t max_bytes) {
  InputFile file(path);
  if (file.size() > max_bytes)
    bad_file(path, "has " + std::to_string(file.size()) + " bytes, must have at most " + std::to_string(max_bytes));
  std::vector<std::byte> content(static_cast<std::size_t>(file.size()));
  file.read(content);
  return content;
}

}  // namespace allnorm::launch
