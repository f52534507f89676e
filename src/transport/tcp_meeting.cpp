// Ranks meet at rank 0, to which they stay connected. With the greeting each shows where it listens: at the address by
// which it reaches rank 0. Then every rank connects with those between rank 0 and itself. Both ends say who they are:
// with the job's token, and with a number that rank 0 has made up for this run and told to its ranks alone.
#include "src/transport/tcp_meeting.hpp"

#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include "src/whereabouts.hpp"

namespace allnorm {

namespace {

using Secret = std::array<std::byte, 32>;

// What a rank shows at the meeting.
struct Card {
  Seat seat{};
  Endpoint door{};  // rank 0 has none
  Secret secret{};  // rank 0's
};
static_assert(std::is_trivially_copyable_v<Card>);

// The first on a connection, in both directions; of the answer the token is empty.
struct Hello {
  std::uint64_t magic = 0x316f6c6c6548;
  std::uint64_t run = 0;
  std::uint32_t from = 0, to = 0;
  Secret secret{};
  PaddedToken token{};
};

Secret made_up() {
  Secret secret{};
  const auto got = ::getrandom(secret.data(), secret.size(), 0);
  expect(got == static_cast<ssize_t>(secret.size()), Code::transport,
         [] { return std::string("the system has no random numbers: ") + std::strerror(errno); });
  return secret;
}

HostName own_host() {
  std::array<char, 256> text{};
  if (::gethostname(text.data(), text.size() - 1) != 0) return {};
  return host_name(text.data());
}

Card card_in(const std::vector<std::byte>& bytes, std::size_t rank) {
  Card card;
  expect(bytes.size() == sizeof card, Code::transport,
         [&] { return "what rank " + std::to_string(rank) + " shows at the rendezvous is not of this transport"; });
  std::memcpy(&card, bytes.data(), sizeof card);
  card.seat.host.back() = '\0';
  expect(card.door.size <= sizeof card.door.address, Code::transport,
         [&] { return "the address of rank " + std::to_string(rank) + " is longer than any"; });
  return card;
}

// The connections of one rank with those that are not rank 0.
class Connecting {
 public:
  Connecting(const Meeting& meeting, std::vector<Card> cards, Socket door, std::vector<TcpConnection>& connections)
      : meeting_(meeting),
        cards_(std::move(cards)),
        door_(std::move(door)),
        connections_(connections),
        done_(cards_.size(), false),
        asked_(cards_.size()),
        why_(cards_.size(), "nobody answers") {
    done_.front() = true;
    done_[own()] = true;
  }

  void run(const Patience& patience) {
    Deadline deadline(patience, patience.timeout);
    while (std::find(done_.begin(), done_.end(), false) != done_.end()) {
      while (Socket socket = accept_at(door_)) strangers_.push_back({std::move(socket), {}});
      std::erase_if(strangers_, [this](Gathering::Peer& stranger) { return !stays(stranger); });
      for (std::size_t rank = 1; rank < own(); ++rank)
        if (!done_[rank] && !asked_[rank].socket)
          connect(rank);
        else if (!done_[rank])
          look_for_answer(rank);
      if (somebody_failed()) return;
      expect(!deadline.over(), Code::timeout, [&] {
        std::vector<std::string> missing;
        std::string details;
        for (std::size_t rank = 0; rank < done_.size(); ++rank) {
          if (done_[rank]) continue;
          missing.push_back(name_of(rank));
          if (rank < own() && details.empty())
            details = "; " + missing.back() + " at " + text_of(cards_[rank].door) + ": " + why_[rank];
        }
        return "connections of " + name_of(own()) + ": " + are_missing(missing) + ", not done after " +
               deadline.text() + details;
      });
      deadline.relax();
    }
  }

 private:
  std::size_t own() const noexcept { return static_cast<std::size_t>(meeting_.rank); }
  static std::string name_of(std::size_t rank) { return "rank " + std::to_string(rank); }
  Hello hello_to(std::size_t rank, const std::string& token) const {
    return {Hello{}.magic,
            hash_of_run(meeting_),
            static_cast<std::uint32_t>(meeting_.rank),
            static_cast<std::uint32_t>(rank),
            cards_.front().secret,
            padded(token)};
  }
  bool is_of_this_run(const Hello& hello, const std::string& token) const {
    const PaddedToken expected = padded(token);
    const bool knows_secret = same_secret(hello.secret.data(), cards_.front().secret.data(), sizeof(Secret));
    const bool knows_token = same_secret(hello.token.data(), expected.data(), expected.size());
    return knows_secret && knows_token && hello.magic == Hello{}.magic && hello.run == hash_of_run(meeting_) &&
           hello.to == own();
  }

  // It listens since before it was welcomed: where it is there its system takes the connection.
  void connect(std::size_t rank) {
    auto& [socket, received] = asked_[rank];
    socket = connect_to(cards_[rank].door, why_[rank]);
    const Hello hello = hello_to(rank, meeting_.token);
    if (socket && send_all(socket, &hello, sizeof hello))
      why_[rank] = "it does not answer";
    else
      socket = Socket();
  }
  void look_for_answer(std::size_t rank) {
    auto& [socket, received] = asked_[rank];
    const bool there = receive(socket, received);
    Hello hello;
    if (received.size() < sizeof hello) {
      if (there) return;
      asked_[rank] = {};  // it fails or is ended, which rank 0 is about to tell
      why_[rank] = "it has closed the connection";
      return;
    }
    std::memcpy(&hello, received.data(), sizeof hello);
    expect(is_of_this_run(hello, "") && hello.from == rank, Code::transport, [&] {
      return "what listens at " + text_of(cards_[rank].door) + " is not " + name_of(rank) + " of this run any more";
    });
    settle(rank, asked_[rank]);
  }
  // False where it leaves the strangers, as a peer or because it is none. Who does not know the secrets hears nothing.
  bool stays(Gathering::Peer& stranger) {
    const bool there = receive(stranger.socket, stranger.received);
    Hello hello;
    if (stranger.received.size() < sizeof hello) return there;
    std::memcpy(&hello, stranger.received.data(), sizeof hello);
    const std::size_t rank = hello.from;
    if (!is_of_this_run(hello, meeting_.token) || rank <= own() || rank >= done_.size() || done_[rank]) return false;
    const Hello answer = hello_to(rank, "");
    if (send_all(stranger.socket, &answer, sizeof answer)) settle(rank, stranger);
    return false;
  }
  void settle(std::size_t rank, Gathering::Peer& peer) {
    peer.received.erase(peer.received.begin(), peer.received.begin() + sizeof(Hello));
    connections_[rank] = TcpConnection(std::move(peer.socket), std::move(peer.received));
    done_[rank] = true;
  }

  // Those who are connected may fail meanwhile: their peers learn it in their first exchange.
  bool somebody_failed() {
    for (std::size_t rank = 0; rank < done_.size(); ++rank) {
      if (!done_[rank] || rank == own()) continue;
      connections_[rank].receive_on();
      if (connections_[rank].told()) return true;
    }
    return false;
  }

  const Meeting& meeting_;
  std::vector<Card> cards_;  // [rank]
  Socket door_;
  std::vector<TcpConnection>& connections_;  // [rank]
  std::vector<bool> done_;                   // [rank]
  std::vector<Gathering::Peer> asked_;       // [rank], of those below this one
  std::vector<std::string> why_;             // [rank] it is not connected yet, of the same
  std::vector<Gathering::Peer> strangers_;
};

}  // namespace

TcpRanks meet_over_tcp(const Meeting& meeting, const Patience& patience) {
  const auto size = static_cast<std::size_t>(meeting.size), own = static_cast<std::size_t>(meeting.rank);
  Socket door;
  const auto card = [&](const Socket& to_rank_0) {
    Card shown{{own_host(), own_cores()}, {}, {}};
    if (meeting.rank == 0) {
      shown.secret = made_up();
    } else {
      door = listen_beside(to_rank_0, meeting.size);
      shown.door = endpoint_of(door);
    }
    const auto* const bytes = reinterpret_cast<const std::byte*>(&shown);
    return std::vector<std::byte>(bytes, bytes + sizeof shown);
  };
  Gathering gathering(meeting, patience, card);
  TcpRanks ranks{std::vector<TcpConnection>(size), {}};
  std::vector<Card> cards;
  for (std::size_t rank = 0; rank < size; ++rank) {
    cards.push_back(card_in(gathering.cards()[rank], rank));
    ranks.seats.push_back(cards.back().seat);
  }
  std::vector<Gathering::Peer> met = gathering.release();
  for (std::size_t i = 0; i < met.size(); ++i)
    if (met[i].socket) ranks.connections[i] = TcpConnection(std::move(met[i].socket), std::move(met[i].received));
  if (own == 0 || size <= 2) return ranks;
  try {
    Connecting(meeting, std::move(cards), std::move(door), ranks.connections).run(patience);
  } catch (const Error& error) {
    TcpConnection::tell_failure(error, ranks.connections);
    throw;
  }
  return ranks;
}

}  // namespace allnorm
