// Sockets of TCP that never block, and what ranks that do not know each other yet do with them.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

struct addrinfo;

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

struct AddressDeleter {
  void operator()(addrinfo* list) const noexcept;
};
using Addresses = std::unique_ptr<addrinfo, AddressDeleter>;
/// Of a host by its name or number; empty with the reason.
Addresses addresses_of(const std::string& host, int port, std::string& why);
bool is_loopback(const addrinfo& at);

/// Where a socket is, or listens, as one rank tells it to another.
struct Endpoint {
  sockaddr_storage address{};
  std::uint32_t size = 0;  // bytes of it
};
/// "10.0.0.7:4711"
std::string text_of(const Endpoint& at);

/// Sockets that listen at the host's addresses, and at no others; `ranks` may come at once. Throws transport.
std::vector<Socket> listen_at(const std::string& host, int port, int ranks);
/// One that listens at the address at which `connected` is on this side, and no other, at a port of the system's
/// choice. Throws transport.
Socket listen_beside(const Socket& connected, int ranks);
/// Where it listens. Throws transport.
Endpoint endpoint_of(const Socket& door);

/// Who has come to the door meanwhile; empty when nobody has.
Socket accept_at(const Socket& door);
/// One attempt, of at most a second; empty when nobody listens (yet), with the reason.
Socket connect_to(const std::string& host, int port, std::string& why);
Socket connect_to(const Endpoint& at, std::string& why);

/// All of it or false. For what is short, and the first on its connection in this direction but for one frame: the
/// socket's buffer takes it at once.
bool send_all(const Socket& socket, const void* data, std::size_t size) noexcept;
/// Appends what has arrived; false when the connection has ended.
bool receive(const Socket& socket, std::vector<std::byte>& to);

/// A secret as it travels: always as long, zeros behind it.
constexpr std::size_t longest_token = 256;  // bytes
using PaddedToken = std::array<char, longest_token>;
PaddedToken padded(const std::string& token);
/// Takes as long for a wrong secret as for the right one, wherever they differ.
bool same_secret(const void* given, const void* own, std::size_t size);

}  // namespace allnorm
