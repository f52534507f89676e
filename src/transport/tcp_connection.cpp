#include "src/transport/tcp_connection.hpp"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace allnorm {

namespace {

constexpr std::size_t buffer_size = 32 << 10;                  // bytes: most messages come in one piece
constexpr std::size_t longest_message = std::size_t{1} << 40;  // bytes of a message: beyond, it is none
constexpr std::size_t longest_told = 1 << 16;                  // bytes of a sentence
constexpr int most_pieces = 256;                               // in a row: other ranks wait, too

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK; }

}  // namespace

TcpConnection::TcpConnection(Socket socket, std::vector<std::byte> received)
    : socket_(std::move(socket)), buffer_(std::max(received.size(), buffer_size)), end_(received.size()), over_(false) {
  std::copy(received.begin(), received.end(), buffer_.begin());
}

TcpConnection::Parcels TcpConnection::parcel(Kind kind, std::uint64_t tag, std::shared_ptr<const Bytes> bytes) {
  Parcels one;
  const std::uint64_t size = bytes ? bytes->size() : 0;
  one.push_back({{Head{}.magic, kind, tag, size}, std::move(bytes), 0});
  return one;
}

void TcpConnection::tell_failure(const Error& error, std::vector<TcpConnection>& peers) {
  const auto* const text = reinterpret_cast<const std::byte*>(error.message().data());
  const auto words = std::make_shared<const Bytes>(text, text + std::min(error.message().size(), longest_told));
  for (TcpConnection& peer : peers) peer.post(parcel(Kind::failed, static_cast<std::uint64_t>(error.code()), words));
}

void TcpConnection::post(Parcels&& parcels) noexcept {
  if (!socket_ || takes_nothing_ || over_) return;
  const bool first = parcels_.empty();
  parcels_.splice(parcels_.end(), parcels);
  if (first) send_on();
}

void TcpConnection::send_on() noexcept {
  while (!parcels_.empty()) {
    Parcel& next = parcels_.front();
    const std::size_t size = next.head.size;
    std::array<iovec, 2> parts{};
    std::size_t count = 0;
    if (next.sent < sizeof(Head))
      parts[count++] = {reinterpret_cast<char*>(&next.head) + next.sent, sizeof(Head) - next.sent};
    if (size > 0) {
      const std::size_t of_bytes = next.sent < sizeof(Head) ? 0 : next.sent - sizeof(Head);
      parts[count++] = {const_cast<std::byte*>(next.bytes->data()) + of_bytes, size - of_bytes};
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = count;
    const auto sent = ::sendmsg(socket_.handle(), &message, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (would_block()) return;
      takes_nothing_ = true;  // why, and what the peer has said before, the other direction tells
      parcels_.clear();
      return;
    }
    next.sent += static_cast<std::size_t>(sent);
    if (next.sent == sizeof(Head) + size) parcels_.pop_front();
  }
}

bool TcpConnection::has_unsent(std::uint64_t tag) const noexcept {
  return std::any_of(parcels_.begin(), parcels_.end(), [tag](const Parcel& parcel) {
    return parcel.head.kind == Kind::message && parcel.head.tag == tag;
  });
}

void TcpConnection::receive_on() {
  for (int pieces = 0; !over_ && pieces < most_pieces; ++pieces) {
    read_buffer();
    if (over_) return;
    // What is left of a long message goes to its place, everything else into the buffer, where there is at most a part
    // of a head by now.
    Message* const coming = coming_.empty() ? nullptr : &coming_.front();
    const bool in_place = coming != nullptr && coming->bytes->size() - coming->filled >= buffer_size;
    if (!in_place) {
      std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
      end_ -= std::exchange(begin_, 0);
    }
    std::size_t& filled = in_place ? coming->filled : end_;
    Bytes& to = in_place ? *coming->bytes : buffer_;
    const std::size_t room = to.size() - filled;
    const auto got = ::recv(socket_.handle(), to.data() + filled, room, 0);
    if (got > 0) {
      filled += static_cast<std::size_t>(got);
      if (static_cast<std::size_t>(got) == room) continue;
      read_buffer();
      return;
    }
    if (got == 0) return end("its connection has ended");
    if (would_block()) return;
    if (errno != EINTR) return end(std::strerror(errno));
  }
}

// Reads what is in the buffer: nothing of it is left but a part of a head.
void TcpConnection::read_buffer() {
  while (!over_) {
    if (coming_.empty()) {
      Head head;
      if (end_ - begin_ < sizeof head) return;
      std::memcpy(&head, buffer_.data() + begin_, sizeof head);
      if (!is_sound(head)) return end("what it sent is not one of allnorm's messages");
      std::list<Message> made;
      made.push_back({head, std::make_shared<Bytes>(head.size), 0});
      coming_.splice(coming_.end(), made);
      begin_ += sizeof head;
    }
    Message& coming = coming_.front();
    const std::size_t size = std::min(coming.bytes->size() - coming.filled, end_ - begin_);
    if (size > 0) std::memcpy(coming.bytes->data() + coming.filled, buffer_.data() + begin_, size);
    coming.filled += size;
    begin_ += size;
    if (coming.filled < coming.bytes->size()) return;
    deliver();
  }
}

bool TcpConnection::is_sound(const Head& head) const noexcept {
  if (head.magic != Head{}.magic) return false;
  if (head.kind == Kind::message) return head.size <= longest_message;
  return (head.kind == Kind::failed && head.size <= longest_told) || (head.kind == Kind::goodbye && head.size == 0);
}

void TcpConnection::deliver() noexcept {
  const Message& whole = coming_.front();
  switch (whole.head.kind) {
    case Kind::message:
      inbox_.splice(inbox_.end(), coming_);
      return;
    case Kind::failed:
      try {
        const auto code = static_cast<Code>(std::min(whole.head.tag, static_cast<std::uint64_t>(Code::non_finite)));
        told_.emplace(code, std::string(reinterpret_cast<const char*>(whole.bytes->data()), whole.bytes->size()));
      } catch (...) {  // no memory for the words
        told_.emplace(Code::device, std::string());
      }
      break;
    case Kind::goodbye:
      over_ = true;
      parcels_.clear();  // it takes nothing any more
      break;
  }
  coming_.clear();
}

std::shared_ptr<const Bytes> TcpConnection::take(std::uint64_t tag) noexcept {
  const auto at = std::find_if(inbox_.begin(), inbox_.end(), [tag](const Message& m) { return m.head.tag == tag; });
  if (at == inbox_.end()) return nullptr;
  std::shared_ptr<const Bytes> bytes = std::move(at->bytes);
  inbox_.erase(at);
  return bytes;
}

void TcpConnection::end(std::string why) noexcept {
  over_ = true;
  broken_ = std::move(why);
  parcels_.clear();
}

void TcpConnection::end_sending() noexcept {
  if (socket_ && !std::exchange(sending_ended_, true)) ::shutdown(socket_.handle(), SHUT_WR);
}

bool TcpConnection::is_delivered() const noexcept {
  if (over_ || takes_nothing_) return true;
  int unacknowledged = 0;
  return parcels_.empty() && (::ioctl(socket_.handle(), SIOCOUTQ, &unacknowledged) != 0 || unacknowledged == 0);
}

}  // namespace allnorm
