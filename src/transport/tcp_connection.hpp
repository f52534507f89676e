// A connection with another rank: what is to leave, and what has come. No function blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "src/exchange.hpp"
#include "src/transport/sockets.hpp"

namespace allnorm {

class TcpConnection {
 public:
  /// What frames are.
  enum class Kind : std::uint32_t { message = 1, failed, goodbye };
  /// Before the bytes of each.
  struct Head {
    std::uint32_t magic = 0x74637031;
    Kind kind = Kind::message;
    std::uint64_t tag = 0;   // of a message; of a failure its Code
    std::uint64_t size = 0;  // bytes that follow
  };
  /// What leaves, in order. Made before anything of it is enqueued: that cannot fail then.
  struct Parcel {
    Head head{};
    std::shared_ptr<const Bytes> bytes{};
    std::size_t sent = 0;  // of head and bytes
  };
  using Parcels = std::list<Parcel>;

  /// None: of a rank with itself. `received`: what has come before over this socket.
  TcpConnection() = default;
  TcpConnection(Socket socket, std::vector<std::byte> received);

  static Parcels parcel(Kind kind, std::uint64_t tag, std::shared_ptr<const Bytes> bytes);
  /// Tells each peer that this rank fails, and why.
  static void tell_failure(const Error& error, std::vector<TcpConnection>& peers);
  /// Sends what it can of it at once.
  void post(Parcels&& parcels) noexcept;
  /// Sends what waits, as far as the system takes it.
  void send_on() noexcept;
  /// What waits here under this tag has not left.
  bool has_unsent(std::uint64_t tag) const noexcept;
  bool has_unsent() const noexcept { return !parcels_.empty(); }

  /// Takes what has come. Where there is no memory for it throws bad_alloc, and nothing is lost.
  void receive_on();
  /// The first message of that tag, or null.
  std::shared_ptr<const Bytes> take(std::uint64_t tag) noexcept;

  /// Nothing comes any more.
  bool is_over() const noexcept { return over_; }
  /// Why it is over without a goodbye; empty where it is not, or there was one.
  const std::string& broken() const noexcept { return broken_; }
  /// The failure that this rank has told, Code and message.
  const std::optional<Error>& told() const noexcept { return told_; }

  /// The peer learns that nothing follows what was sent.
  void end_sending() noexcept;
  /// All that was sent is in the memory of the peer's system, where it outlives this end; or nobody takes it.
  bool is_delivered() const noexcept;
  /// -1 where there is nothing to wait for.
  int handle() const noexcept { return over_ ? -1 : socket_.handle(); }

 private:
  struct Message {
    Head head{};
    std::shared_ptr<Bytes> bytes{};
    std::size_t filled = 0;  // of bytes
  };
  void read_buffer();
  bool is_sound(const Head& head) const noexcept;
  void deliver() noexcept;
  void end(std::string why) noexcept;

  Socket socket_;
  Parcels parcels_;
  Bytes buffer_;  // of what has come, [begin_, end_) is not read yet
  std::size_t begin_ = 0, end_ = 0;
  std::list<Message> inbox_, coming_;  // coming_: at most one, whose bytes are not all there
  bool over_ = true, sending_ended_ = false, takes_nothing_ = false;
  std::string broken_;
  std::optional<Error> told_;
};

}  // namespace allnorm
