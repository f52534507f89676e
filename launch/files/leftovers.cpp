// Names and locks of files that exist only while a run writes, and what to do about those of a run that was killed.
#include "launch/files/leftovers.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "launch/files/journal.hpp"

namespace allnorm::launch {
namespace {

constexpr std::string_view prefix = ".allnorm-";

// Waits where another process only looks whether the file is a leftover.
bool lock(int descriptor, int how) noexcept {
  int status = 0;
  do status = ::flock(descriptor, how);
  while (status != 0 && errno == EINTR);
  return status == 0;
}

bool still_there(int descriptor) noexcept {
  struct stat status {};
  return ::fstat(descriptor, &status) == 0 && status.st_nlink > 0;
}

}  // namespace

std::uint64_t new_number() {
  std::random_device random;
  return (std::uint64_t{random()} << 32 | random()) >> 16;
}

std::string stem_of(std::uint64_t number) {
  constexpr int digits = 12;
  std::string text(digits, '0');
  for (auto digit = text.rbegin(); digit != text.rend(); ++digit, number >>= 4)
    *digit = "0123456789abcdef"[number & 15];
  return text;
}

std::string rank_stem(const std::string& run, int rank) { return run + "." + std::to_string(rank); }

std::string leftover_name(const std::string& stem, Leftover kind, unsigned long number) {
  const std::string name = std::string(prefix) + stem;
  switch (kind) {
    case Leftover::temporary:
      return name + "-" + std::to_string(number) + ".tmp";
    case Leftover::backup:
      return name + "-" + std::to_string(number) + ".old";
    case Leftover::journal:
      return name + ".journal";
    case Leftover::decision:
      break;
  }
  return name + ".decision";
}

// HHHHHHHHHHHH[.RANK] and then -NUMBER.tmp, -NUMBER.old, .journal or .decision; H: a hexadecimal digit.
std::optional<LeftoverName> parse_leftover(std::string_view name) {
  constexpr std::string_view decimal = "0123456789", hexadecimal = "0123456789abcdef";
  constexpr std::size_t run_size = 12;
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  const auto digits_from = [&](std::size_t at) { return std::min(name.find_first_not_of(decimal, at), name.size()); };
  if (name.size() <= run_size || name.find_first_not_of(hexadecimal) != run_size) return std::nullopt;
  std::size_t stem = run_size;
  if (name[stem] == '.' && digits_from(stem + 1) > stem + 1) stem = digits_from(stem + 1);
  std::string_view rest = name.substr(stem);
  const bool numbered = rest.starts_with('-') && digits_from(stem + 1) > stem + 1;
  if (numbered) rest = name.substr(digits_from(stem + 1));
  constexpr std::pair<std::string_view, Leftover> kinds[] = {{".tmp", Leftover::temporary},
                                                             {".old", Leftover::backup},
                                                             {".journal", Leftover::journal},
                                                             {".decision", Leftover::decision}};
  for (const auto& [suffix, kind] : kinds)
    if (rest == suffix && numbered == (kind == Leftover::temporary || kind == Leftover::backup))
      return LeftoverName{kind, std::string(name.substr(0, stem)), std::string(name.substr(0, run_size))};
  return std::nullopt;
}

std::vector<std::pair<std::string, LeftoverName>> leftovers_in(const std::string& folder) {
  std::vector<std::pair<std::string, LeftoverName>> found;
  std::error_code error;
  for (std::filesystem::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (auto parts = parse_leftover(name)) found.emplace_back(name, std::move(*parts));
  }
  return found;
}

bool lock_new(int descriptor) { return !lock(descriptor, LOCK_EX) || still_there(descriptor); }

int take_over(const std::string& path) {
  constexpr int flags = O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
  int descriptor = ::open(path.c_str(), O_RDWR | flags);  // some file systems lock only what may be written
  if (descriptor < 0) descriptor = ::open(path.c_str(), O_RDONLY | flags);
  if (descriptor < 0) return -1;
  struct stat status {};
  int why = 0;
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode) || status.st_uid != ::geteuid())
    why = EPERM;
  else if (!lock(descriptor, LOCK_EX | LOCK_NB))
    why = errno;
  else if (!still_there(descriptor))
    why = ENOENT;
  if (why == 0) return descriptor;
  ::close(descriptor);
  errno = why;
  return -1;
}

int write_all(int descriptor, std::span<const std::byte> bytes) noexcept {
  while (!bytes.empty()) {
    const ssize_t put = ::write(descriptor, bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return put < 0 ? errno : EIO;
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
  return 0;
}

void sync_folder(const std::string& folder) noexcept {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

void recover(const std::string& folder, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  for (bool busy = true; busy;) {
    busy = false;
    for (const auto& [name, parts] : leftovers_in(folder))
      if (parts.kind == Leftover::journal) busy |= mend_journal(folder, name) == Mended::busy;
    if (busy && Clock::now() >= end) break;
    if (busy) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  for (const auto& [name, parts] : leftovers_in(folder)) {
    if (parts.kind == Leftover::decision) remove_decision(folder, parts.run);
    if (parts.kind != Leftover::temporary) continue;
    const std::string path = folder + "/" + name;
    const int descriptor = take_over(path);
    if (descriptor < 0) continue;
    // A writer lets go of its temporary only once its journal is there; that may have been after the look above.
    if (::access((folder + "/" + leftover_name(parts.stem, Leftover::journal)).c_str(), F_OK) != 0)
      ::unlink(path.c_str());
    ::close(descriptor);
  }
}

void recover_once(const std::string& folder, double seconds) {
  static std::mutex mutex;
  static std::set<std::string> done;
  const std::lock_guard guard(mutex);
  std::error_code error;
  const std::string real = std::filesystem::canonical(folder.empty() ? "." : folder, error).string();
  if (!error && done.insert(real).second) recover(real, seconds);
}

}  // namespace allnorm::launch
