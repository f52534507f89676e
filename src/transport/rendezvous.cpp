// Ranks meet over TCP: one greeting each, rank 0's answer when all are there, and later at most one bad piece of news.
#include "src/transport/rendezvous.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string_view>

#include "allnorm/message.hpp"
#include "src/whereabouts.hpp"

namespace allnorm {

namespace {

// Ranks of one job run on one kind of processor: words travel as they are in memory.
constexpr std::size_t shortest_token = 16, longest_token = 256;  // bytes
struct Greeting {
  std::uint64_t magic = 0x32676e69746565;
  std::uint64_t run = 0;  // a hash
  std::uint32_t rank = 0, size = 0;
  std::array<char, longest_token> token{};  // zeros behind it
};
enum class News : std::uint32_t { welcome = 1, refused, failed, goodbye };
struct FrameHead {
  News news{};
  std::uint32_t size = 0;  // bytes that follow
};
constexpr std::size_t longest = 1 << 16;  // bytes of a frame: an id or a sentence

std::string reason() { return std::strerror(errno); }

std::array<char, longest_token> padded(const std::string& token) {
  std::array<char, longest_token> bytes{};
  std::copy_n(token.begin(), std::min(token.size(), longest_token), bytes.begin());
  return bytes;
}

// Takes as long for a wrong token as for the right one, wherever they differ.
bool same_token(const std::array<char, longest_token>& given, const std::array<char, longest_token>& own) {
  volatile unsigned char difference = 0;
  for (std::size_t i = 0; i < longest_token; ++i)
    difference = static_cast<unsigned char>(difference | (given[i] ^ own[i]));
  return difference == 0;
}

std::uint64_t hash_of_run(const std::string& run) { return hash_of(run.data(), run.size()); }

struct AddressDeleter {
  void operator()(addrinfo* list) const noexcept { ::freeaddrinfo(list); }
};
using Addresses = std::unique_ptr<addrinfo, AddressDeleter>;

// Of a host by its name or number; empty with the reason.
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

void check_token(const Meeting& meeting) {
  if (!meeting.token.empty()) {
    expect(meeting.token.size() >= shortest_token && meeting.token.size() <= longest_token, Code::invalid_argument,
           [&] {
             return "the job token has " + std::to_string(meeting.token.size()) + " bytes, must have " +
                    std::to_string(shortest_token) + " to " + std::to_string(longest_token);
           });
    return;
  }
  std::string why;
  bool loopback = true;
  const Addresses list = addresses_of(meeting.host, meeting.port, why);
  for (const addrinfo* at = list.get(); at != nullptr; at = at->ai_next) loopback &= is_loopback(*at);
  expect(loopback && list, Code::invalid_argument, [&] {
    return "the job token is missing, must be given (ALLNORM_JOB_TOKEN or ALLNORM_JOB_TOKEN_FILE) where ranks meet "
           "at " +
           meeting.host + (list ? ", which other machines reach" : " (" + why + ")") +
           ": without one it must be a loopback address, as 127.0.0.1";
  });
}

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

// All of it or false. What is sent is short, and the first on its connection in this direction but for one frame: the
// socket's buffer takes it at once.
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

bool send_frame(const Socket& socket, News news, const void* data, std::size_t size) noexcept {
  size = std::min(size, longest);
  const FrameHead head{news, static_cast<std::uint32_t>(size)};
  return send_all(socket, &head, sizeof head) && send_all(socket, data, size);
}

// Appends what has arrived; false when the connection has ended.
bool receive(const Socket& socket, std::vector<std::byte>& to) {
  std::array<std::byte, 4096> part;
  for (;;) {
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
}

// Takes a T from the front, if all of it is there.
template <class T>
bool take(std::vector<std::byte>& from, T& value) {
  if (from.size() < sizeof value) return false;
  std::memcpy(&value, from.data(), sizeof value);
  from.erase(from.begin(), from.begin() + sizeof value);
  return true;
}

// Takes a frame from the front, if all of it is there. Throws transport for what is none.
bool take_frame(std::vector<std::byte>& from, FrameHead& head, std::vector<std::byte>& content) {
  if (from.size() < sizeof head) return false;
  std::memcpy(&head, from.data(), sizeof head);
  expect(head.size <= longest && head.news >= News::welcome && head.news <= News::goodbye, Code::transport,
         "what arrived at the rendezvous is not one of allnorm's messages");
  if (from.size() < sizeof head + head.size) return false;
  const auto begin = from.begin() + sizeof head, end = begin + static_cast<std::ptrdiff_t>(head.size);
  content.assign(begin, end);
  from.erase(from.begin(), end);
  return true;
}

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Sockets that listen at the host's addresses, and at no others.
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

// One attempt; empty when nobody listens (yet), with the reason.
Socket connect_to(const std::string& host, int port, std::string& why) {
  const Addresses list = addresses_of(host, port, why);
  for (const addrinfo* at = list.get(); at != nullptr; at = at->ai_next) {
    Socket socket(::socket(at->ai_family, at->ai_socktype, at->ai_protocol));
    if (!socket) continue;
    prepare(socket);
    int status = ::connect(socket.handle(), at->ai_addr, at->ai_addrlen);
    if (status != 0 && errno == EINPROGRESS) {
      int error = ETIMEDOUT;
      socklen_t size = sizeof error;
      if (wait_for(socket, POLLOUT, 1000)) ::getsockopt(socket.handle(), SOL_SOCKET, SO_ERROR, &error, &size);
      errno = error;
      status = error == 0 ? 0 : -1;
    }
    if (status == 0) return socket;
    why = reason();
  }
  return {};
}

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}
int number(const char* name, int least, int most) {
  const std::string text = variable(name);
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  expect(error == std::errc() && end == text.data() + text.size() && value >= least && value <= most,
         Code::invalid_argument, [&] {
           return std::string(name) + " is " + (text.empty() ? "not set" : "\"" + text + "\"") +
                  ", must be a number from " + std::to_string(least) + " to " + std::to_string(most);
         });
  return value;
}

// A secret that stands in a file stays out of the list of processes and of their environments.
std::string token_from_environment() {
  std::string token = variable("ALLNORM_JOB_TOKEN");
  const std::string path = variable("ALLNORM_JOB_TOKEN_FILE");
  if (!token.empty() || path.empty()) return token;
  std::ifstream file(path, std::ios::binary);
  std::getline(file, token);
  while (token.ends_with('\r') || token.ends_with(' ')) token.pop_back();
  expect(!token.empty(), Code::invalid_argument,
         [&] { return "ALLNORM_JOB_TOKEN_FILE is " + path + ", must be a file with the job token in its first line"; });
  return token;
}

}  // namespace

Socket::~Socket() {
  if (handle_ >= 0) ::close(handle_);
}

int meeting_port() {
  constexpr int last_port = 65535, own_port = 29601;
  if (!variable("ALLNORM_PORT").empty()) return number("ALLNORM_PORT", 1, last_port);
  return variable("MASTER_PORT").empty() ? own_port : number("MASTER_PORT", 1, last_port - 1) + 1;
}

Meeting meeting_from_environment() {
  Meeting meeting;
  meeting.host = variable("MASTER_ADDR");
  expect(!meeting.host.empty(), Code::invalid_argument, "MASTER_ADDR is not set, must be the host of rank 0");
  meeting.size = number("WORLD_SIZE", 1, 1 << 20);
  meeting.rank = number("RANK", 0, meeting.size - 1);
  meeting.port = meeting_port();
  meeting.run = variable("ALLNORM_RUN");
  if (meeting.run.empty())
    for (const char* name : {"TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID"})
      meeting.run += variable(name) + "/";
  meeting.token = token_from_environment();
  if (meeting.size > 1) check_token(meeting);
  return meeting;
}

Gathering::Gathering(const Meeting& meeting, std::vector<std::byte> bytes, const Patience& patience)
    : meeting_(meeting), bytes_(std::move(bytes)) {
  if (meeting_.size == 1) return;
  check_token(meeting_);
  if (meeting_.rank == 0)
    host(patience);
  else
    visit(patience);
}

void Gathering::host(const Patience& patience) {
  Deadline deadline(patience, patience.first_timeout);
  const std::vector<Socket> doors = listen_at(meeting_.host, meeting_.port, meeting_.size);
  const auto token = padded(meeting_.token);
  peers_.resize(static_cast<std::size_t>(meeting_.size));
  std::vector<Peer> strangers;  // connected, not yet greeted
  int missing = meeting_.size - 1;
  while (missing > 0) {
    for (const Socket& door : doors)
      for (int handle = 0; (handle = ::accept(door.handle(), nullptr, nullptr)) >= 0;) {
        strangers.push_back({Socket(handle), {}});
        prepare(strangers.back().socket);
      }
    for (auto stranger = strangers.begin(); stranger != strangers.end();) {
      bool stays = receive(stranger->socket, stranger->received);
      Greeting greeting;
      if (stays && take(stranger->received, greeting)) {
        stays = false;
        std::string refusal;
        if (greeting.magic == Greeting{}.magic && !same_token(greeting.token, token))
          refusal = "its job token is another";
        else if (greeting.magic != Greeting{}.magic || greeting.run != hash_of_run(meeting_.run))
          refusal = "it is of another run or version";
        else if (greeting.size != static_cast<std::uint32_t>(meeting_.size))
          refusal = "its group has " + std::to_string(greeting.size) + " ranks, must have " +
                    std::to_string(meeting_.size) + " as on rank 0";
        else if (greeting.rank == 0 || greeting.rank >= greeting.size || peers_[greeting.rank].socket)
          refusal = "there is a rank " + std::to_string(greeting.rank) + " already";
        if (refusal.empty()) {
          peers_[greeting.rank] = std::move(*stranger);
          --missing;
        } else {
          send_frame(stranger->socket, News::refused, refusal.data(), refusal.size());
        }
      }
      stranger = stays ? std::next(stranger) : strangers.erase(stranger);
    }
    if (missing > 0 && deadline.over()) {
      std::vector<std::string> who;
      for (std::size_t rank = 1; rank < peers_.size(); ++rank)
        if (!peers_[rank].socket) who.push_back("rank " + std::to_string(rank));
      fail(Code::timeout, "rendezvous at port " + std::to_string(meeting_.port) + ": " + are_missing(who) +
                              ", not done after " + deadline.text());
    }
    if (missing > 0) deadline.relax();
  }
  for (std::size_t rank = 1; rank < peers_.size(); ++rank)
    expect(send_frame(peers_[rank].socket, News::welcome, bytes_.data(), bytes_.size()), Code::transport,
           [&] { return "rank " + std::to_string(rank) + " left the rendezvous: " + reason(); });
}

void Gathering::visit(const Patience& patience) {
  Deadline deadline(patience, patience.first_timeout);
  const std::string place = "rendezvous with rank 0 at " + meeting_.host + ":" + std::to_string(meeting_.port);
  peers_.resize(1);
  Peer& host = peers_.front();
  std::string why = "nobody answers";
  for (;;) {
    if (!host.socket) {
      host = {connect_to(meeting_.host, meeting_.port, why), {}};
      const Greeting greeting{Greeting{}.magic, hash_of_run(meeting_.run), static_cast<std::uint32_t>(meeting_.rank),
                              static_cast<std::uint32_t>(meeting_.size), padded(meeting_.token)};
      if (host.socket && !send_all(host.socket, &greeting, sizeof greeting)) host = {};
      if (host.socket) why = "another rank is missing, or what listens there is not allnorm";
    }
    if (host.socket) {
      const bool there = receive(host.socket, host.received);
      FrameHead head;
      std::vector<std::byte> content;
      if (take_frame(host.received, head, content)) {
        expect(head.news != News::refused, Code::transport,
               [&] { return place + " refused rank " + std::to_string(meeting_.rank) + ": " + text_of(content); });
        bytes_ = std::move(content);
        return;
      }
      if (!there) {  // an earlier run's rank 0 that just ends, or one that gave up: try again until the deadline
        host = {};
        why = "the connection ended";
      }
    }
    expect(!deadline.over(), Code::timeout, [&] { return place + ": " + why + ", not done after " + deadline.text(); });
    deadline.relax();
  }
}

Gathering::~Gathering() {
  for (const Peer& peer : peers_)
    if (peer.socket) send_frame(peer.socket, News::goodbye, nullptr, 0);
}

void Gathering::pass_on(const std::string& why, int except) noexcept {
  for (std::size_t i = 0; i < peers_.size(); ++i)
    if (peers_[i].socket && static_cast<int>(i) != except)
      send_frame(peers_[i].socket, News::failed, why.data(), why.size());
}

void Gathering::tell(const std::string& why) noexcept {
  const std::lock_guard lock(mutex_);
  if (!std::exchange(told_, true)) pass_on(why, -1);
}

std::string Gathering::heard() noexcept {
  const std::lock_guard lock(mutex_);
  try {
    for (std::size_t i = 0; i < peers_.size() && why_.empty(); ++i) {
      Peer& peer = peers_[i];
      if (!peer.socket) continue;
      const bool there = receive(peer.socket, peer.received);
      FrameHead head;
      std::vector<std::byte> content;
      bool left = false;
      while (take_frame(peer.received, head, content)) {
        left |= head.news == News::goodbye;
        if (head.news == News::failed) why_ = text_of(content);
      }
      if (!there && !left && why_.empty())
        why_ = "rank " + std::to_string(i) + " failed: its connection ended without a word";
      if (!there || left) peer.socket = Socket();
      if (!why_.empty() && !std::exchange(told_, true) && meeting_.rank == 0) pass_on(why_, static_cast<int>(i));
    }
    return why_;
  } catch (...) {
    return "the connection to the other ranks failed";
  }
}

}  // namespace allnorm
