// Ranks meet over TCP: one greeting each with what it shows, rank 0's answer when all are there, and later at most one
// bad piece of news.
#include "src/transport/rendezvous.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>

#include "allnorm/late.hpp"
#include "allnorm/message.hpp"
#include "src/whereabouts.hpp"

namespace allnorm {

namespace {

// Ranks of one job run on one kind of processor: words travel as they are in memory.
struct Greeting {
  std::uint64_t magic = 0x33676e69746565;
  std::uint64_t run = 0;  // a hash
  std::uint32_t rank = 0, size = 0;
  std::uint64_t card = 0;  // bytes of it, which follow
  PaddedToken token{};
};
enum class News : std::uint32_t { welcome = 1, refused, failed, goodbye, late };
struct FrameHead {
  News news{};
  std::uint32_t size = 0;  // bytes that follow
};
constexpr std::size_t longest_card = 4096;         // bytes
constexpr std::size_t longest_sentence = 1 << 16;  // bytes of a sentence
constexpr std::size_t longest_welcome = std::size_t{1} << 31;

bool send_frame(const Socket& socket, News news, const void* data, std::size_t size) noexcept {
  size = std::min(size, news == News::welcome ? longest_welcome : longest_sentence);
  const FrameHead head{news, static_cast<std::uint32_t>(size)};
  return send_all(socket, &head, sizeof head) && send_all(socket, data, size);
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
  expect(head.news >= News::welcome && head.news <= News::late &&
             head.size <= (head.news == News::welcome ? longest_welcome : longest_sentence),
         Code::transport, "what arrived at the rendezvous is not one of allnorm's messages");
  if (from.size() < sizeof head + head.size) return false;
  const auto begin = from.begin() + sizeof head, end = begin + static_cast<std::ptrdiff_t>(head.size);
  content.assign(begin, end);
  from.erase(from.begin(), end);
  return true;
}

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// All cards in a row, a length before each.
std::vector<std::byte> joined(const std::vector<std::vector<std::byte>>& cards) {
  std::vector<std::byte> all;
  for (const auto& card : cards) {
    const auto size = static_cast<std::uint32_t>(card.size());
    const auto* const bytes = reinterpret_cast<const std::byte*>(&size);
    all.insert(all.end(), bytes, bytes + sizeof size);
    all.insert(all.end(), card.begin(), card.end());
  }
  return all;
}
std::vector<std::vector<std::byte>> parted(std::vector<std::byte> all, int ranks) {
  std::vector<std::vector<std::byte>> cards(static_cast<std::size_t>(ranks));
  std::size_t at = 0;
  for (auto& card : cards) {
    std::uint32_t size = 0;
    const bool has_size = all.size() - at >= sizeof size;
    if (has_size) std::memcpy(&size, all.data() + at, sizeof size);
    at += has_size ? sizeof size : 0;
    expect(has_size && size <= all.size() - at, Code::transport,
           "what rank 0 says at the rendezvous is cut, must have a part of every rank");
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(at);
    card.assign(begin, begin + static_cast<std::ptrdiff_t>(size));
    at += size;
  }
  return cards;
}

// Who has connected and is no peer yet.
struct Stranger {
  Gathering::Peer peer{};
  std::optional<Greeting> greeting{};  // once it is accepted: then its card follows
};

}  // namespace

std::uint64_t hash_of_run(const Meeting& meeting) { return hash_of(meeting.run.data(), meeting.run.size()); }

Gathering::Gathering(const Meeting& meeting, const Patience& patience, const Card& own)
    : meeting_(meeting), cards_(static_cast<std::size_t>(meeting.size)) {
  if (meeting_.size == 1) {
    cards_.front() = own({});
    return;
  }
  check_token(meeting_);
  if (meeting_.rank == 0)
    host(own, patience);
  else
    visit(own, patience);
}

Gathering::Gathering(const Meeting& meeting, std::vector<std::byte> own, const Patience& patience)
    : Gathering(meeting, patience, [&own](const Socket&) { return own; }) {}

void Gathering::host(const Card& own, const Patience& patience) {
  Deadline deadline(patience, patience.first_timeout);
  const double warn_when_left = patience.first_timeout - std::min(patience.first_timeout / 2, 30.0);
  const std::vector<Socket> doors = listen_at(meeting_.host, meeting_.port, meeting_.size);
  const PaddedToken token = padded(meeting_.token);
  peers_.resize(static_cast<std::size_t>(meeting_.size));
  cards_.front() = own({});
  std::vector<Stranger> strangers;
  std::string refused;  // the last one
  const auto refusal_of = [&](const Greeting& greeting) -> std::string {
    if (greeting.magic == Greeting{}.magic && !same_secret(greeting.token.data(), token.data(), token.size()))
      return "its job token is another";
    if (greeting.magic != Greeting{}.magic || greeting.run != hash_of_run(meeting_) || greeting.card > longest_card)
      return "it is of another run or version";
    if (greeting.size != static_cast<std::uint32_t>(meeting_.size))
      return "its group has " + std::to_string(greeting.size) + " ranks, must have " + std::to_string(meeting_.size) +
             " as on rank 0";
    if (greeting.rank == 0 || greeting.rank >= greeting.size || peers_[greeting.rank].socket)
      return "there is a rank " + std::to_string(greeting.rank) + " already";
    return {};
  };
  // False where it leaves the strangers: as a peer, refused, or by itself.
  const auto stays = [&](Stranger& stranger) {
    auto& [socket, received] = stranger.peer;
    if (!receive(socket, received)) return false;
    if (Greeting greeting; !stranger.greeting && take(received, greeting)) {
      if (const std::string refusal = refusal_of(greeting); !refusal.empty()) {
        send_frame(socket, News::refused, refusal.data(), refusal.size());
        refused = "; a rank " + std::to_string(greeting.rank) + " was refused: " + refusal;
        return false;
      }
      stranger.greeting = greeting;
    }
    if (!stranger.greeting || received.size() < stranger.greeting->card) return true;
    const std::size_t rank = stranger.greeting->rank;
    if (peers_[rank].socket) return false;  // another one was faster
    cards_[rank] = std::exchange(received, {});
    cards_[rank].resize(stranger.greeting->card);
    peers_[rank] = std::move(stranger.peer);
    return false;
  };
  for (bool warned = false;;) {
    for (const Socket& door : doors)
      while (Socket socket = accept_at(door)) strangers.push_back({{std::move(socket), {}}, {}});
    for (auto stranger = strangers.begin(); stranger != strangers.end();)
      stranger = stays(*stranger) ? std::next(stranger) : strangers.erase(stranger);
    std::vector<std::string> missing;
    for (std::size_t rank = 1; rank < peers_.size(); ++rank) {
      Peer& peer = peers_[rank];
      if (peer.socket && !receive(peer.socket, peer.received)) peer = {};  // it gave up, or was ended
      if (!peer.socket) missing.push_back("rank " + std::to_string(rank));
    }
    if (missing.empty()) break;
    const auto line = [&](const std::string& so_far) {
      return "rendezvous at port " + std::to_string(meeting_.port) + ": " + are_missing(missing) + ", " + so_far +
             refused;
    };
    if (deadline.over()) {
      const std::string late = line("not done after " + deadline.text());
      for (const Peer& peer : peers_)
        if (peer.socket) send_frame(peer.socket, News::late, late.data(), late.size());
      fail(Code::timeout, late);
    }
    if (!warned && patience.warn && deadline.left() < warn_when_left) {
      warned = true;
      patience.warn(
          {line("waiting for " + seconds_text(patience.first_timeout - warn_when_left) + " of " + deadline.text()),
           0,
           true,
           {}});
    }
    deadline.relax();
  }
  const std::vector<std::byte> all = joined(cards_);
  for (std::size_t rank = 1; rank < peers_.size(); ++rank)
    expect(send_frame(peers_[rank].socket, News::welcome, all.data(), all.size()), Code::transport,
           [&] { return "rank " + std::to_string(rank) + " left the rendezvous: " + std::strerror(errno); });
}

void Gathering::visit(const Card& own, const Patience& patience) {
  Deadline deadline(patience, patience.first_timeout);
  constexpr double for_rank_0 = 0.5;  // seconds: its deadline is about to end too, and it knows who is missing
  const std::string place = "rendezvous with rank 0 at " + meeting_.host + ":" + std::to_string(meeting_.port);
  peers_.resize(1);
  Peer& host = peers_.front();
  std::string why = "nobody answers";
  for (;;) {
    if (!host.socket) {
      host = {connect_to(meeting_.host, meeting_.port, why), {}};
      if (host.socket) {
        const std::vector<std::byte> card = own(host.socket);
        const Greeting greeting{Greeting{}.magic,
                                hash_of_run(meeting_),
                                static_cast<std::uint32_t>(meeting_.rank),
                                static_cast<std::uint32_t>(meeting_.size),
                                card.size(),
                                padded(meeting_.token)};
        if (!send_all(host.socket, &greeting, sizeof greeting) || !send_all(host.socket, card.data(), card.size()))
          host = {};
      }
      if (host.socket) why = "another rank is missing, or what listens there is not allnorm";
    }
    if (host.socket) {
      const bool there = receive(host.socket, host.received);
      FrameHead head;
      std::vector<std::byte> content;
      if (take_frame(host.received, head, content)) {
        expect(head.news != News::refused, Code::transport,
               [&] { return place + " refused rank " + std::to_string(meeting_.rank) + ": " + text_of(content); });
        expect(head.news != News::late, Code::aborted, [&] { return "rank 0 failed: " + text_of(content); });
        cards_ = parted(std::move(content), meeting_.size);
        return;
      }
      if (!there) {  // an earlier run's rank 0 that just ends, or one that gave up: try again until the deadline
        host = {};
        why = "the connection ended";
      }
    }
    expect(deadline.left() >= (host.socket ? -for_rank_0 : 0), Code::timeout,
           [&] { return place + ": " + why + ", not done after " + deadline.text(); });
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
