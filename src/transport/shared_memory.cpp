#include "src/transport/shared_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string_view>

namespace allnorm {

namespace {

bool is_wanted() noexcept {
  const char* const set = std::getenv("ALLNORM_SHARED_MEMORY");
  return set == nullptr || std::string_view(set) != "0";
}

// `handle`: -1 for memory of this process alone.
std::shared_ptr<std::byte> mapped(int handle, std::size_t bytes) noexcept {
  const int kind = handle < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
  void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kind, handle, 0);
  if (at == MAP_FAILED) return nullptr;
  try {
    return {static_cast<std::byte*>(at), [bytes](std::byte* memory) { ::munmap(memory, bytes); }};
  } catch (const std::bad_alloc&) {  // it has called munmap
    return nullptr;
  }
}

}  // namespace

NamedMemory::NamedMemory(std::size_t bytes) noexcept {
  std::uint64_t number = 0;
  if (!is_wanted() || ::getrandom(&number, sizeof number, 0) != sizeof number) return;
  MemoryName name{};
  std::snprintf(name.data(), name.size(), "/allnorm-%016llx", static_cast<unsigned long long>(number));
  const int handle = ::shm_open(name.data(), O_CREAT | O_EXCL | O_RDWR, S_IRUSR | S_IWUSR);
  if (handle < 0) return;
  // Not ftruncate: where memory lacks, that would be found by a signal, at the first touch.
  const bool made = ::posix_fallocate(handle, 0, static_cast<off_t>(bytes)) == 0;
  ::close(handle);
  if (made)
    name_ = name;
  else
    ::shm_unlink(name.data());
}

NamedMemory::~NamedMemory() {
  if (name_.front() != '\0') ::shm_unlink(name_.data());
}

std::shared_ptr<std::byte> attach(const MemoryName& name, std::size_t bytes) noexcept {
  if (name.front() == '\0') return nullptr;
  const int handle = ::shm_open(name.data(), O_RDWR, 0);
  if (handle < 0) return nullptr;
  struct stat is {};
  const bool fits = ::fstat(handle, &is) == 0 && is.st_size == static_cast<off_t>(bytes);
  auto memory = fits ? mapped(handle, bytes) : nullptr;
  ::close(handle);
  return memory;
}

std::shared_ptr<std::byte> zeros(std::size_t bytes) noexcept { return is_wanted() ? mapped(-1, bytes) : nullptr; }

}  // namespace allnorm
