// The exchange over TCP: what every transport must do, and who is named where connections are not what they should be.
// The ranks are threads here; tests/program/tcp_test.cpp has processes.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "allnorm/tcp.hpp"
#include "exchange_cases.hpp"
#include "norm_cases.hpp"
#include "src/transport/rendezvous.hpp"
#include "src/transport/tcp_connection.hpp"

namespace tcp_test {
namespace {

using namespace allnorm;
using harness::error_of;
using harness::World;

constexpr const char* a_token = "a secret of this test";

Meeting meeting_of(int port, int rank, int size) { return {"127.0.0.1", port, rank, size, "a run", a_token}; }

Patience patience_of(double timeout, double first_timeout = 60) {
  Patience patience;
  patience.timeout = timeout;
  patience.first_timeout = first_timeout;
  return patience;
}

// Each rank on a thread of its own; the first error that is no other's consequence is thrown again.
void on_ranks(int ranks, const std::function<void(const Meeting&)>& body) {
  const int port = harness::free_port();
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      try {
        body(meeting_of(port, rank, ranks));
      } catch (...) {
        errors[static_cast<std::size_t>(rank)] = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const auto& error : errors)
    if (error) std::rethrow_exception(error);
}

void run(int ranks, const harness::Body& body, const Patience& patience = patience_of(60)) {
  on_ranks(ranks, [&](const Meeting& meeting) {
    Queue queue = Queue::cpu();
    body(tcp(meeting, patience), queue);
  });
}

Message message(std::uint64_t call, std::vector<double> payload = {1.0}) {
  return {Header("bn", Direction::forward, call), std::move(payload), 0, {}};
}

// ---- what every transport must do -----------------------------------------------------------------------------------

class TcpExchange : public testing::TestWithParam<std::pair<int, int>> {
 protected:
  void run_here(void (*body)(const World&, Queue&)) const {
    Patience patience = patience_of(60);
    patience.gather_limit = GetParam().second;
    run(GetParam().first, body, patience);
  }
};

TEST_P(TcpExchange, SumsAreExact) { run_here(exchange_cases::sums_are_exact); }
TEST_P(TcpExchange, MomentsAreMerged) { run_here(exchange_cases::moments_are_merged); }
TEST_P(TcpExchange, ExchangesOverlap) { run_here(exchange_cases::exchanges_overlap); }
TEST_P(TcpExchange, ARankMayDecline) { run_here(exchange_cases::a_rank_may_decline); }
TEST_P(TcpExchange, SplitsAreIndependent) { run_here(exchange_cases::splits_are_independent); }

INSTANTIATE_TEST_SUITE_P(RanksAndGatherLimit, TcpExchange,
                         testing::Values(std::pair(1, 32), std::pair(2, 32), std::pair(3, 32), std::pair(5, 32),
                                         std::pair(2, 1), std::pair(5, 1)));

TEST(TcpGatheredExchange, SumsAreInRankOrder) { run(4, exchange_cases::sums_are_in_rank_order); }
TEST(TcpGatheredExchange, MismatchesAreNamed) { run(3, exchange_cases::mismatches_are_named); }

TEST(TcpCompositions, EqualTheOracleAndTheBitsOfThreads) {
  constexpr int ranks = 3;
  for (const auto& [name, composition] : norm_cases::compositions()) {
    SCOPED_TRACE(name);
    std::vector<norm_cases::Trace> traces(ranks);
    run(ranks, [&](const World& world, Queue& queue) {
      traces[static_cast<std::size_t>(world->rank())] = norm_cases::check(composition, world, queue);
    });
    harness::run(ranks, [&](const World& world, Queue& queue) {
      EXPECT_EQ(traces[static_cast<std::size_t>(world->rank())], norm_cases::check(composition, world, queue));
    });
  }
}

TEST(TcpExchanges, LeaveNoDescriptors) {
  const auto open = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
  };
  run(3, exchange_cases::sums_are_exact);
  const auto before = open();
  for (int i = 0; i < 10; ++i) run(3, exchange_cases::sums_are_exact);
  EXPECT_EQ(open(), before);
}

// ---- who is late or gone --------------------------------------------------------------------------------------------

TEST(TcpLateRank, IsNamedAfterTheDeadline) {
  std::atomic<int> done{0};
  on_ranks(3, [&](const Meeting& meeting) {
    Queue queue = Queue::cpu();
    const auto world = tcp(meeting, patience_of(0.8));
    world->exchange({Header("first", Direction::agreement, 0), {}, 0, {}}, queue);
    if (world->rank() != 2) {
      EXPECT_EQ(error_of([&] { world->exchange(message(0), queue); }),
                "timeout: bn, call 0, forward: rank 2 is missing, not done after 0.8 s; rank 2 was last heard of at "
                "first, call 0, agreement");
      ++done;
    }
    while (done < 2) std::this_thread::yield();
  });
}

TEST(TcpLateRank, IsNamedByThoseWhoDoNotWaitForItThemselves) {
  std::atomic<int> done{0};
  run(
      3,
      [&](const World& world, Queue& queue) {
        world->exchange({Header("first", Direction::agreement, 0), {}, 0, {}}, queue);
        const auto group = world->split(world->rank() == 0 ? 0 : 1, queue);  // rank 1 waits for rank 2 in there
        group->exchange(message(0), queue);
        if (world->rank() != 2) {
          const std::string error = error_of([&] {
            group->exchange(message(1), queue);
            world->exchange({Header("all", Direction::forward, 0), {1.0}, 0, {}}, queue);
          });
          EXPECT_NE(error.find("forward: rank 2 is missing, not done after 0.8 s"), std::string::npos) << error;
          ++done;
        }
        while (done < 2) std::this_thread::yield();
      },
      patience_of(0.8));
}

TEST(TcpLateRank, ThatHasLeftIsNamedAtOnceAndWhatItSentCounts) {
  const auto start = std::chrono::steady_clock::now();
  on_ranks(3, [](const Meeting& meeting) {
    Queue queue = Queue::cpu();
    auto world = tcp(meeting, patience_of(60));
    const std::vector<double> large(400000, 1.0);
    if (world->rank() == 2) {
      (void)world->start_exchange(message(0, large), queue);  // nobody has taken it yet
      world.reset();
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_EQ(world->exchange(message(0, large), queue).payload, std::vector<double>(400000, 3));
    EXPECT_EQ(error_of([&] { world->exchange(message(1), queue); }),
              "aborted: bn, call 1, forward: rank 2 has left; rank 2 was last heard of at bn, call 0, forward");
  });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(TcpLateRank, ThatIsKilledIsNamedAtOnce) {
  const int port = harness::free_port();
  const pid_t child = ::fork();
  if (child == 0) {  // rank 1: gone after an exchange, with all that its system knows of it
    Queue queue = Queue::cpu();
    const auto world = tcp(meeting_of(port, 1, 2), patience_of(60));
    world->exchange(message(0), queue);
    ::_exit(0);
  }
  const auto start = std::chrono::steady_clock::now();
  Queue queue = Queue::cpu();
  const auto world = tcp(meeting_of(port, 0, 2), patience_of(60));
  world->exchange(message(0), queue);
  const std::string error = error_of([&] { world->exchange(message(1), queue); });
  EXPECT_TRUE(error.starts_with("transport: bn, call 1, forward: rank 1 has ended without a goodbye: ")) << error;
  EXPECT_TRUE(error.ends_with("; rank 1 was last heard of at bn, call 0, forward")) << error;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
}

TEST(TcpFailedRank, IsNamedOnEveryRank) {
  run(3, [](const World& world, Queue& queue) {
    if (world->rank() == 1)
      world->abort(Error(Code::invalid_input, "x.1.npy is no array"));
    else
      EXPECT_EQ(error_of([&] { world->exchange(message(0), queue); }), "aborted: rank 1 failed: x.1.npy is no array");
  });
}

TEST(TcpFailedRank, IsReadAsFarAsItCame) {
  run(2, [](const World& world, Queue& queue) {
    if (world->rank() == 1) {
      (void)world->start_exchange(message(0), queue);
      world->abort(Error(Code::invalid_input, "x.1.npy is no array"));
      return;
    }
    EXPECT_EQ(world->exchange(message(0), queue).payload[0], 2);
    EXPECT_EQ(error_of([&] { world->exchange(message(1), queue); }), "aborted: rank 1 failed: x.1.npy is no array");
  });
}

// ---- the meeting ----------------------------------------------------------------------------------------------------

TEST(TcpMeeting, ARankThatNeverComesIsNamedByRank0AndToldToAll) {
  const int port = harness::free_port();
  std::thread other([&] {
    EXPECT_EQ(error_of([&] { tcp(meeting_of(port, 1, 3), patience_of(60, 0.6)); }),
              "aborted: rank 0 failed: rendezvous at port " + std::to_string(port) +
                  ": rank 2 is missing, not done after 0.6 s");
  });
  EXPECT_EQ(error_of([&] { tcp(meeting_of(port, 0, 3), patience_of(60, 0.6)); }),
            "timeout: rendezvous at port " + std::to_string(port) + ": rank 2 is missing, not done after 0.6 s");
  other.join();
}

TEST(TcpMeeting, AnotherTokenIsRefusedAndSaidSo) {
  const int port = harness::free_port();
  Meeting stolen = meeting_of(port, 1, 2);
  stolen.token = "a Secret of this test";
  std::thread other([&] {
    EXPECT_EQ(error_of([&] { tcp(stolen, patience_of(60)); }),
              "transport: rendezvous with rank 0 at 127.0.0.1:" + std::to_string(port) +
                  " refused rank 1: its job token is another");
  });
  EXPECT_EQ(error_of([&] { tcp(meeting_of(port, 0, 2), patience_of(60, 1)); }),
            "timeout: rendezvous at port " + std::to_string(port) +
                ": rank 1 is missing, not done after 1 s; a rank 1 was refused: its job token is another");
  other.join();
}

TEST(TcpMeeting, RanksOfAnotherTransportAreNoneOfThis) {
  const int port = harness::free_port();
  std::thread other([&] { const Gathering gathering(meeting_of(port, 1, 2), {}, patience_of(60)); });
  EXPECT_EQ(error_of([&] { tcp(meeting_of(port, 0, 2), patience_of(60)); }),
            "transport: what rank 1 shows at the rendezvous is not of this transport");
  other.join();
}

TEST(TcpMeeting, NumbersThatNoRankHasAreRefused) {
  EXPECT_EQ(error_of([] { tcp(meeting_of(1, 2, 2)); }),
            "invalid argument: a rank is 2 of 2, must be 0 to one less than their number");
}

// Sockets of this process that listen, but for the one of the rendezvous.
std::vector<Endpoint> doors_of_ranks(int port) {
  std::vector<Endpoint> doors;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int handle = std::stoi(entry.path().filename().string());
    int listens = 0;
    socklen_t size = sizeof listens;
    if (::getsockopt(handle, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) != 0 || listens == 0) continue;
    Endpoint at;
    at.size = sizeof at.address;
    if (::getsockname(handle, reinterpret_cast<sockaddr*>(&at.address), &at.size) != 0) continue;
    if (ntohs(reinterpret_cast<const sockaddr_in&>(at.address).sin_port) != port) doors.push_back(at);
  }
  return doors;
}

// Between the greeting and the last rank's coming anybody can connect with the ranks that wait for others. They listen
// at the address of the rendezvous, and what does not know the secrets disturbs nobody.
TEST(TcpMeeting, StrangersAtARanksDoorAreSentAway) {
  const int port = harness::free_port();
  std::atomic<bool> last_may_come{false};
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 4; ++rank)
    ranks.emplace_back([&, rank] {
      while (rank == 3 && !last_may_come) std::this_thread::yield();
      Queue queue = Queue::cpu();
      const auto world = tcp(meeting_of(port, rank, 4), patience_of(60));
      EXPECT_EQ(world->exchange(message(0), queue).payload[0], 4);
      if (rank == 0) {
        EXPECT_TRUE(doors_of_ranks(port).empty()) << "a door is still open";
      }
    });
  std::vector<Endpoint> doors;
  while ((doors = doors_of_ranks(port)).size() < 2) std::this_thread::yield();
  std::vector<Socket> strangers;
  for (const Endpoint& door : doors) {
    EXPECT_TRUE(text_of(door).starts_with("127.0.0.1:")) << text_of(door);
    std::string why;
    for (const std::string& says : {std::string(), std::string("GET / HTTP/1.1\r\n\r\n"), std::string(4096, 'x')}) {
      strangers.push_back(connect_to(door, why));
      ASSERT_TRUE(strangers.back()) << why;
      EXPECT_TRUE(send_all(strangers.back(), says.data(), says.size()));
    }
  }
  last_may_come = true;
  for (std::thread& rank : ranks) rank.join();
}

// ---- one connection -------------------------------------------------------------------------------------------------

struct Pair {
  Socket ours{}, theirs{};
};
Pair connected() {
  int ends[2] = {-1, -1};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
  return {Socket(ends[0]), Socket(ends[1])};
}
using Head = TcpConnection::Head;
using Kind = TcpConnection::Kind;

TEST(TcpConnectionOfARank, TakesMessagesInAnyPieces) {
  Pair pair = connected();
  TcpConnection connection(std::move(pair.ours), {});
  std::string stream;
  for (const std::size_t size : {0u, 5u, 100000u}) {
    const Head head{Head{}.magic, Kind::message, 7, size};
    stream.append(reinterpret_cast<const char*>(&head), sizeof head);
    stream.append(size, static_cast<char>('a' + size % 26));
  }
  for (std::size_t at = 0; at < stream.size();) {
    const std::size_t piece = std::min(at < 200 ? std::size_t{1} : std::size_t{9999}, stream.size() - at);
    ASSERT_TRUE(send_all(pair.theirs, stream.data() + at, piece));
    at += piece;
    connection.receive_on();
  }
  EXPECT_EQ(connection.take(8), nullptr);
  for (const std::size_t size : {0u, 5u, 100000u}) {
    const auto bytes = connection.take(7);
    ASSERT_NE(bytes, nullptr);
    EXPECT_EQ(*bytes, Bytes(size, static_cast<std::byte>('a' + size % 26)));
  }
  EXPECT_EQ(connection.take(7), nullptr);
  EXPECT_FALSE(connection.is_over());
}

TEST(TcpConnectionOfARank, IsOverWhereWhatComesIsNoMessage) {
  const auto broken_by = [](const Head& head) {
    Pair pair = connected();
    TcpConnection connection(std::move(pair.ours), {});
    EXPECT_TRUE(send_all(pair.theirs, &head, sizeof head));
    connection.receive_on();
    EXPECT_TRUE(connection.is_over());
    return connection.broken();
  };
  const std::string why = "what it sent is not one of allnorm's messages";
  EXPECT_EQ(broken_by({1, Kind::message, 0, 0}), why);
  EXPECT_EQ(broken_by({Head{}.magic, static_cast<Kind>(9), 0, 0}), why);
  EXPECT_EQ(broken_by({Head{}.magic, Kind::message, 0, ~std::uint64_t{0}}), why);
  EXPECT_EQ(broken_by({Head{}.magic, Kind::failed, 0, 1 << 20}), why);
  EXPECT_EQ(broken_by({Head{}.magic, Kind::goodbye, 0, 8}), why);
  EXPECT_EQ(broken_by({Head{}.magic, Kind::goodbye, 0, 0}), "");
}

TEST(TcpConnectionOfARank, EndsWithItsPeerWhateverWaitsToLeave) {
  Pair pair = connected();
  TcpConnection connection(std::move(pair.ours), {});
  for (int i = 0; i < 3; ++i)
    connection.post(TcpConnection::parcel(Kind::message, 7, std::make_shared<const Bytes>(4 << 20)));
  EXPECT_TRUE(connection.has_unsent(7));
  EXPECT_FALSE(connection.has_unsent(8));
  pair.theirs = Socket();
  connection.send_on();
  EXPECT_FALSE(connection.has_unsent());
  connection.receive_on();
  EXPECT_TRUE(connection.is_over());
  EXPECT_TRUE(connection.is_delivered());
}

}  // namespace
}  // namespace tcp_test
