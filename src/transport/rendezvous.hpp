// How ranks that have nothing in common yet meet: over TCP or through a file. Rank 0 has a few bytes for all others.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "allnorm/nccl.hpp"
#include "src/transport/deadline.hpp"

namespace allnorm {

/// A socket, owned. Move-only.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int handle) noexcept : handle_(handle) {}
  Socket(Socket&& other) noexcept : handle_(std::exchange(other.handle_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Socket();
  int handle() const noexcept { return handle_; }
  explicit operator bool() const noexcept { return handle_ >= 0; }

 private:
  int handle_ = -1;
};

/// The port of meeting_from_environment(). Throws invalid_argument, naming the variable.
int meeting_port();

/// The ranks of a run, connected to rank 0, which passes on what one has to tell all: that it failed. A rank that ends
/// without a good-bye counts as failed. May be used by two threads.
class Gathering {
 public:
  /// Collective: waits for all ranks, at most first_timeout. Rank 0's `bytes` are then in bytes() on every rank. Throws
  /// timeout (rank 0 names who is missing), transport.
  Gathering(const Meeting& meeting, std::vector<std::byte> bytes, const Patience& patience);
  /// Says good-bye.
  ~Gathering();
  Gathering(const Gathering&) = delete;
  Gathering& operator=(const Gathering&) = delete;

  const std::vector<std::byte>& bytes() const noexcept { return bytes_; }
  /// Tells all other ranks `why`, once. Does not wait for them.
  void tell(const std::string& why) noexcept;
  /// What another rank told, or that one is gone; empty while there is nothing. Passes it on. Never blocks.
  std::string heard() noexcept;

 private:
  struct Peer {
    Socket socket{};
    std::vector<std::byte> received{};  // not yet a whole frame
  };
  void host(const Patience& patience);
  void visit(const Patience& patience);
  void pass_on(const std::string& why, int except) noexcept;

  Meeting meeting_;
  std::vector<std::byte> bytes_;
  std::mutex mutex_;
  std::vector<Peer> peers_;  // rank 0: [rank], its own stays empty; others: rank 0's alone
  std::string why_;
  bool told_ = false;
};

/// Rank 0's `bytes` on every rank, through a file that all see. `run` must not be empty. The file appears whole; one of
/// another run is not taken. The caller removes it when all ranks have it. Throws timeout, invalid_argument, transport.
std::vector<std::byte> meet_in_file(const std::string& path, const std::string& run, int rank,
                                    const std::vector<std::byte>& bytes, const Patience& patience);

}  // namespace allnorm
