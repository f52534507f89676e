#include "src/transport/sockets.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "allnorm/error.hpp"

namespace allnorm {

namespace {

std::string reason() { return std::strerror(errno); }

void prepare(const Socket& socket) {
  const int one = 1;
  ::fcntl(socket.handle(), F_SETFL, O_NONBLOCK);
  ::fcntl(socket.handle(), F_SETFD, FD_CLOEXEC);
  ::setsockopt(socket.handle(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

bool wait_for(const Socket& socket, short events, int milliseconds) {
  pollfd look{socket.handle(), events, 0};
  return ::poll(&look, 1, milliseconds) > 0;
}

Socket connect_once(int family, const sockaddr* address, socklen_t address_size, std::string& why) {
  Socket socket(::socket(family, SOCK_STREAM, 0));
  if (!socket) {
    why = reason();
    return {};
  }
  prepare(socket);
  int status = ::connect(socket.handle(), address, address_size);
  if (status != 0 && errno == EINPROGRESS) {
    int error = ETIMEDOUT;
    socklen_t size = sizeof error;
    if (wait_for(socket, POLLOUT, 1000)) ::getsockopt(socket.handle(), SOL_SOCKET, SO_ERROR, &error, &size);
    errno = error;
    status = error == 0 ? 0 : -1;
  }
  if (status == 0) return socket;
  why = reason();
  return {};
}

}  // namespace

Socket::~Socket() {
  if (handle_ >= 0) ::close(handle_);
}

void AddressDeleter::operator()(addrinfo* list) const noexcept { ::freeaddrinfo(list); }

Addresses addresses_of(const std::string& host, int port, std::string& why) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int status = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found); status != 0)
    why = ::gai_strerror(status);
  return Addresses(found);
}

bool is_loopback(const addrinfo& at) {
  if (at.ai_family == AF_INET)
    return ntohl(reinterpret_cast<const sockaddr_in*>(at.ai_addr)->sin_addr.s_addr) >> 24 == 127;
  return at.ai_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(at.ai_addr)->sin6_addr);
}

std::string text_of(const Endpoint& at) {
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  const auto* const address = reinterpret_cast<const sockaddr*>(&at.address);
  if (::getnameinfo(address, at.size, host.data(), host.size(), port.data(), port.size(),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return "an unknown address";
  return std::string(host.data()) + ":" + port.data();
}

std::vector<Socket> listen_at(const std::string& host, int port, int ranks) {
  std::string why = "it has no address";
  std::vector<Socket> doors;
  const Addresses list = addresses_of(host, port, why);
  for (const addrinfo* at = list.get(); at != nullptr; at = at->ai_next) {
    Socket socket(::socket(at->ai_family, at->ai_socktype, at->ai_protocol));
    const int one = 1;
    if (socket) {
      prepare(socket);
      ::setsockopt(socket.handle(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
      if (at->ai_family == AF_INET6) ::setsockopt(socket.handle(), IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
    }
    if (socket && ::bind(socket.handle(), at->ai_addr, at->ai_addrlen) == 0 && ::listen(socket.handle(), ranks) == 0)
      doors.push_back(std::move(socket));
    else
      why = reason();
  }
  expect(!doors.empty(), Code::transport, [&] {
    return "rank 0 cannot listen at " + host + ", port " + std::to_string(port) + ": " + why +
           "; MASTER_ADDR must be an address of rank 0's machine, ALLNORM_PORT chooses another port";
  });
  return doors;
}

Socket listen_beside(const Socket& connected, int ranks) {
  Endpoint at = endpoint_of(connected);
  if (at.address.ss_family == AF_INET) reinterpret_cast<sockaddr_in*>(&at.address)->sin_port = 0;
  if (at.address.ss_family == AF_INET6) reinterpret_cast<sockaddr_in6*>(&at.address)->sin6_port = 0;
  Socket socket(::socket(at.address.ss_family, SOCK_STREAM, 0));
  if (socket) prepare(socket);
  const bool listens = socket &&
                       ::bind(socket.handle(), reinterpret_cast<const sockaddr*>(&at.address), at.size) == 0 &&
                       ::listen(socket.handle(), ranks) == 0;
  expect(listens, Code::transport,
         [&] { return "a rank cannot listen for others at " + text_of(at) + ": " + reason(); });
  return socket;
}

Endpoint endpoint_of(const Socket& door) {
  Endpoint at;
  socklen_t size = sizeof at.address;
  expect(::getsockname(door.handle(), reinterpret_cast<sockaddr*>(&at.address), &size) == 0, Code::transport,
         [] { return "the address of a socket is not known: " + reason(); });
  at.size = size;
  return at;
}

Socket accept_at(const Socket& door) {
  Socket socket(::accept(door.handle(), nullptr, nullptr));
  if (socket) prepare(socket);
  return socket;
}

Socket connect_to(const std::string& host, int port, std::string& why) {
  const Addresses list = addresses_of(host, port, why);
  for (const addrinfo* at = list.get(); at != nullptr; at = at->ai_next)
    if (Socket socket = connect_once(at->ai_family, at->ai_addr, at->ai_addrlen, why)) return socket;
  return {};
}
Socket connect_to(const Endpoint& at, std::string& why) {
  return connect_once(at.address.ss_family, reinterpret_cast<const sockaddr*>(&at.address), at.size, why);
}

bool send_all(const Socket& socket, const void* data, std::size_t size) noexcept {
  const char* at = static_cast<const char*>(data);
  for (int tries = 0; size > 0 && tries < 100;) {
    const auto sent = ::send(socket.handle(), at, size, MSG_NOSIGNAL);
    if (sent > 0) {
      at += sent;
      size -= static_cast<std::size_t>(sent);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      wait_for(socket, POLLOUT, 10);
      ++tries;
    } else if (errno != EINTR) {
      return false;
    }
  }
  return size == 0;
}

bool receive(const Socket& socket, std::vector<std::byte>& to) {
  std::array<std::byte, 4096> part;
  constexpr int most = 256;  // parts in a row: others wait, too
  for (int parts = 0; parts < most; ++parts) {
    const auto got = ::recv(socket.handle(), part.data(), part.size(), 0);
    if (got > 0)
      to.insert(to.end(), part.begin(), part.begin() + got);
    else if (got == 0)
      return false;
    else if (errno == EAGAIN || errno == EWOULDBLOCK)
      return true;
    else if (errno != EINTR)
      return false;
  }
  return true;
}

PaddedToken padded(const std::string& token) {
  PaddedToken bytes{};
  std::copy_n(token.begin(), std::min(token.size(), longest_token), bytes.begin());
  return bytes;
}

bool same_secret(const void* given, const void* own, std::size_t size) {
  const auto *const a = static_cast<const unsigned char*>(given), *const b = static_cast<const unsigned char*>(own);
  volatile unsigned char difference = 0;
  for (std::size_t i = 0; i < size; ++i) difference = static_cast<unsigned char>(difference | (a[i] ^ b[i]));
  return difference == 0;
}

}  // namespace allnorm
