// Ranks as processes that are connected over TCP, each two of them.
#include "src/transport/tcp.hpp"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <new>
#include <numeric>
#include <string>
#include <utility>

#include "src/transport/tcp_meeting.hpp"

namespace allnorm {

namespace {

constexpr std::chrono::seconds most_at_the_end{1};

class ConnectedLinks final : public TcpLinks {
 public:
  ConnectedLinks(int rank, TcpRanks ranks)
      : rank_(rank),
        connections_(std::move(ranks.connections)),
        crowded_(is_crowded(ranks.seats, static_cast<std::size_t>(rank))) {
    std::vector<int> numbers(connections_.size());
    std::iota(numbers.begin(), numbers.end(), 0);
    names_ = names_of(ranks.seats, numbers);
    nodes_ = nodes_of(ranks.seats);
    looks_.reserve(connections_.size());
  }
  ConnectedLinks(const ConnectedLinks&) = delete;
  ConnectedLinks& operator=(const ConnectedLinks&) = delete;
  ~ConnectedLinks() override {
    say_goodbye();
    see_it_delivered();
  }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return static_cast<int>(connections_.size()); }
  std::string_view transport() const noexcept override { return "tcp"; }
  std::string name_of(int rank) const override { return names_[static_cast<std::size_t>(rank)]; }
  int node_of(int rank) const override { return nodes_[static_cast<std::size_t>(rank)]; }
  bool crowded() const noexcept override { return crowded_; }

  void post(std::span<const int> to, std::uint64_t tag, std::shared_ptr<const Bytes> bytes) override {
    std::vector<TcpConnection::Parcels> parcels;  // all of them before the first is sent, or none is
    for (std::size_t i = 0; i < to.size(); ++i)
      parcels.push_back(TcpConnection::parcel(TcpConnection::Kind::message, tag, bytes));
    for (std::size_t i = 0; i < to.size(); ++i) with(to[i]).post(std::move(parcels[i]));
  }

  std::shared_ptr<const Bytes> poll(int from, std::uint64_t tag) override {
    TcpConnection& connection = with(from);
    if (auto bytes = connection.take(tag)) return bytes;
    connection.receive_on();
    auto bytes = connection.take(tag);
    if (bytes) return bytes;
    look_at_all();
    expect_no_failure(from);
    return nullptr;
  }

  std::vector<int> unsent(std::uint64_t tag) override {
    std::vector<int> ranks;
    for (int rank = 0; rank < size(); ++rank) {
      TcpConnection& connection = with(rank);
      if (!connection.has_unsent()) continue;
      connection.send_on();
      if (connection.has_unsent(tag)) ranks.push_back(rank);
    }
    return ranks;
  }

  bool has_left(int rank) override {
    with(rank).receive_on();
    return with(rank).is_over();
  }
  std::string lost(int rank) override { return with(rank).broken(); }

  // What comes meanwhile is taken in, so that a rank is woken once by it.
  void sleep(Pause::Step most) override {
    looks_.clear();
    for (const TcpConnection& connection : connections_)
      looks_.push_back({connection.handle(), static_cast<short>(POLLIN | (connection.has_unsent() ? POLLOUT : 0)), 0});
    const timespec time{most.count() / 1'000'000, static_cast<long>(most.count() % 1'000'000 * 1000)};
    if (::ppoll(looks_.data(), looks_.size(), &time, nullptr) <= 0) return;
    for (std::size_t rank = 0; rank < looks_.size(); ++rank) {
      if ((looks_[rank].revents & POLLOUT) != 0) connections_[rank].send_on();
      if ((looks_[rank].revents & ~POLLOUT) != 0) connections_[rank].receive_on();
    }
  }

  void abort(const Error& error) noexcept override {
    try {
      TcpConnection::tell_failure(error, connections_);
    } catch (const std::bad_alloc&) {  // that the connections end says enough
    }
  }

  std::vector<Told> told() override {
    std::vector<Told> all;
    for (int rank = 0; rank < size(); ++rank) {
      with(rank).receive_on();
      const auto& told = with(rank).told();
      if (told) all.push_back({rank, told->code()});
    }
    return all;
  }

 private:
  TcpConnection& with(int rank) noexcept { return connections_[static_cast<std::size_t>(rank)]; }

  // A rank of another group may have failed: so now and then everyone is heard.
  void look_at_all() {
    constexpr std::chrono::milliseconds apart{10};
    const auto time = std::chrono::steady_clock::now();
    if (time < next_look_) return;
    next_look_ = time + apart;
    for (TcpConnection& connection : connections_) connection.receive_on();
  }

  // Of several that have told, the one that did not fail because of another; of `from` first.
  void expect_no_failure(int from) {
    const auto expect_none = [this](int rank, bool of_its_own) {
      const auto& told = with(rank).told();
      if (told && (told->code() == Code::aborted) != of_its_own)
        fail(Code::aborted, name_of(rank) + " failed: " + told->message());
    };
    for (const bool of_its_own : {true, false}) {
      expect_none(from, of_its_own);
      for (int rank = 0; rank < size(); ++rank) expect_none(rank, of_its_own);
    }
  }

  void say_goodbye() noexcept {
    try {
      for (TcpConnection& connection : connections_)
        connection.post(TcpConnection::parcel(TcpConnection::Kind::goodbye, 0, nullptr));
    } catch (const std::bad_alloc&) {  // peers that still wait will take this rank for a dead one
    }
  }
  // A socket that is closed with something unread in it, or to which something more is sent, forgets what it had still
  // to send.
  void see_it_delivered() noexcept {
    const auto end = std::chrono::steady_clock::now() + most_at_the_end;
    Pause pause;
    for (;;) {
      bool all = true;
      for (TcpConnection& connection : connections_) {
        connection.send_on();
        if (!connection.has_unsent()) connection.end_sending();
        try {
          connection.receive_on();
        } catch (const std::bad_alloc&) {  // then it stays unread
        }
        all &= connection.is_delivered();
      }
      if (all || std::chrono::steady_clock::now() >= end) return;
      if (const Pause::Step step = pause.next(crowded_); step > Pause::Step{0}) std::this_thread::sleep_for(step);
    }
  }

  int rank_;
  std::vector<TcpConnection> connections_;  // [rank], this one's is over
  bool crowded_;
  std::vector<std::string> names_;  // [rank]
  std::vector<int> nodes_;          // [rank]
  std::vector<pollfd> looks_;
  std::chrono::steady_clock::time_point next_look_{};
};

}  // namespace

std::shared_ptr<TcpLinks> tcp_links(const Meeting& meeting, const Patience& patience) {
  expect(meeting.size >= 1 && meeting.rank >= 0 && meeting.rank < meeting.size, Code::invalid_argument, [&] {
    return "a rank is " + std::to_string(meeting.rank) + " of " + std::to_string(meeting.size) +
           ", must be 0 to one less than their number";
  });
  return std::make_shared<ConnectedLinks>(meeting.rank, meet_over_tcp(meeting, patience));
}

std::shared_ptr<Communicator> tcp(const Meeting& meeting, const Patience& patience) {
  return communicate(tcp_links(meeting, patience), patience);
}

}  // namespace allnorm
