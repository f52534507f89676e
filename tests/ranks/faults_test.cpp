// Every fault of a transport, and want of memory, at every rank and call: nothing but right results and named errors.
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "allocations.hpp"
#include "calls.hpp"
#include "faulty_links.hpp"

namespace faults_test {
namespace {

using namespace allnorm;
using calls::Calls;
using faults::Fault;
using faults::Kind;
using reference::Doubles;

constexpr int ranks = 3;
constexpr std::uint64_t calls_made = 20;                          // forward and backward of 10 steps
const calls::Subject& subject() { return calls::subjects()[1]; }  // with all that a state can have

/// After every call that went right: what it wrote, and the state.
struct Right {
  Doubles results;
  std::vector<std::byte> state;
};
using Trace = std::vector<Right>;

/// How a rank ended: `calls` that went right, then maybe an error.
struct End {
  std::uint64_t calls = 0;
  std::string error{};
  Code code{};
  bool died = false, changed = false;  // changed: a call that failed left another state
};

// One of a rank's calls, with memory refused at one of the blocks that it asks for.
void make(Calls& own, const Fault& fault, std::uint64_t call) {
  std::optional<allocations::Refusal> refusal;
  if (fault.kind == Kind::no_memory && fault.call == call) refusal.emplace(5 * call + 2);
  own.make();
}

// As the program: a rank that fails tells the others, and makes no further call.
End run(const harness::World& world, const Fault& fault, Trace& trace) {
  Queue queue = Queue::cpu();
  Calls own(subject(), world, queue);
  const Fault mine = world->rank() == fault.rank ? fault : Fault{};
  End end;
  for (; end.calls < calls_made; ++end.calls) {
    const auto before = own.state();
    try {
      own.prepare(end.calls);
      make(own, mine, end.calls);
      trace.push_back({own.results(), own.state()});
    } catch (const Error& error) {
      end.error = error.message();
      end.code = error.code();
      end.changed = own.state() != before;
      world->abort(error);
      break;
    } catch (const faults::Died&) {
      end.died = true;
      break;
    }
  }
  return end;
}

struct Outcome {
  std::vector<End> ends{ranks};
  std::vector<Trace> traces{ranks};
};
Outcome run(const Fault& fault, int ranks_per_node) {
  const bool waits = fault.kind == Kind::drop || fault.kind == Kind::die;  // for what does not come
  Patience patience;
  patience.timeout = patience.first_timeout = waits ? 1 : 60;
  const auto worlds = faults::threads(ranks, fault, ranks_per_node, patience);
  Outcome outcome;
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] { outcome.ends[r] = run(worlds[r], fault, outcome.traces[r]); });
  for (auto& thread : threads) thread.join();
  return outcome;
}

std::string text_of(const Fault& fault) {
  return std::string(faults::name_of(fault.kind)) + " at rank " + std::to_string(fault.rank) + ", call " +
         std::to_string(fault.call);
}

// What may follow from a fault, of a rank's error.
bool is_named(const Fault& fault, int rank, const End& end) {
  const bool own = rank == fault.rank;
  if (fault.kind == Kind::no_memory && own) return end.code == Code::device && end.error.starts_with("out of memory");
  if (fault.kind == Kind::fail && own) return end.code == Code::transport && end.error == "the network is down";
  if (end.code != Code::timeout && end.code != Code::aborted && end.code != Code::transport &&
      end.code != Code::mismatch)
    return false;
  return end.error.find("rank " + std::to_string(fault.rank)) != end.error.npos || own;
}

void check(const Fault& fault, const Outcome& outcome, const std::vector<Trace>& right) {
  SCOPED_TRACE(text_of(fault));
  bool happened = false;
  for (int r = 0; r < ranks; ++r) {
    SCOPED_TRACE("rank " + std::to_string(r));
    const auto at = static_cast<std::size_t>(r);
    const End& end = outcome.ends[at];
    ASSERT_EQ(outcome.traces[at].size(), end.calls);
    for (std::size_t call = 0; call < end.calls; ++call) {
      EXPECT_EQ(outcome.traces[at][call].results, right[at][call].results) << call;
      EXPECT_EQ(outcome.traces[at][call].state, right[at][call].state) << call;
    }
    EXPECT_FALSE(end.changed);
    EXPECT_GE(end.calls, fault.call);  // nothing happens before the fault
    if (end.calls < calls_made && !end.died) {
      EXPECT_TRUE(is_named(fault, r, end)) << to_string(end.code) << ": " << end.error;
    }
    EXPECT_EQ(end.died, fault.kind == Kind::die && r == fault.rank);
    happened |= end.calls < calls_made;
  }
  // Late is not wrong. Of a message that was lost in the last call its sender need not hear, but the others do; and a
  // call may ask for less memory than is refused.
  if (fault.kind != Kind::no_memory) {
    EXPECT_EQ(happened, fault.kind != Kind::delay);
  }
}

class Faults : public testing::TestWithParam<int> {};  // ranks of a node, 0 where they share memory

TEST_P(Faults, EndInARightResultOrANamedError) {
  const Outcome clean = run(Fault{}, GetParam());
  for (const End& end : clean.ends) ASSERT_EQ(end.calls, calls_made) << end.error;
  std::vector<Fault> all;
  for (const Kind kind : faults::kinds)
    for (int rank = 0; rank < ranks; ++rank)
      for (std::uint64_t call = 0; call < calls_made; ++call) all.push_back({kind, rank, call});
  ASSERT_EQ(all.size(), 360u);

  std::vector<Outcome> outcomes(all.size());
  std::atomic<std::size_t> next{0};
  std::vector<std::thread> workers;  // most of the time they wait for a deadline
  for (int i = 0; i < 16; ++i)
    workers.emplace_back([&] {
      for (std::size_t at = next++; at < all.size(); at = next++) outcomes[at] = run(all[at], GetParam());
    });
  for (auto& worker : workers) worker.join();
  for (std::size_t at = 0; at < all.size(); ++at) check(all[at], outcomes[at], clean.traces);
}

INSTANTIATE_TEST_SUITE_P(Ways, Faults, testing::Values(0, ranks),
                         [](const auto& way) { return std::string(way.param == 0 ? "InMemory" : "ByMessage"); });

}  // namespace
}  // namespace faults_test
