// Memory of a host that its processes share, for as long as one of them has it.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

namespace allnorm {

// There is none where ALLNORM_SHARED_MEMORY is 0: ranks then send messages, as they do between hosts.

/// How the others find it; empty where there is none.
using MemoryName = std::array<char, 48>;

/// Shared memory while it has a name. Who has made it takes the name away once all have come.
class NamedMemory {
 public:
  NamedMemory() = default;
  /// `bytes` zeros, set aside: that the system has no more later cannot happen. Where it cannot be made it has no name.
  explicit NamedMemory(std::size_t bytes) noexcept;
  ~NamedMemory();
  NamedMemory(const NamedMemory&) = delete;
  NamedMemory& operator=(const NamedMemory&) = delete;

  const MemoryName& name() const noexcept { return name_; }

 private:
  MemoryName name_{};
};

/// That of another process of this host; null where there is none of that name, or it has another size.
std::shared_ptr<std::byte> attach(const MemoryName& name, std::size_t bytes) noexcept;
/// Zeros for the threads of this process, which take memory where they are written; null where there are none.
std::shared_ptr<std::byte> zeros(std::size_t bytes) noexcept;

}  // namespace allnorm
