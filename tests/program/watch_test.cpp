// Jobs that are watched: traces, flight records and what is made of them, metrics of a job that hangs.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include <nlohmann/json.hpp>

#include "build_config.hpp"
#include "harness.hpp"
#include "launch/watch/metrics_server.hpp"
#include "launch/watch/rank_watch.hpp"
#include "launch/watch/record.hpp"
#include "processes.hpp"
#include "runner.hpp"

namespace allnorm::test {
namespace {

using Json = nlohmann::json;

class Watched : public testing::Test {
 protected:
  Watched() {
    for (int rank = 0; rank < 3; ++rank) place.make("x." + std::to_string(rank) + ".npy", {rank + 1, 4, 5});
    place.make("dy.npy", {1, 4, 5});
  }
  Json json(const std::string& name) const { return Json::parse(place.bytes(name)); }

  static constexpr auto job = "apply sync_batch_norm --input x.{rank}.npy --out o ";
  static constexpr auto for_minutes = "--steps 1000000 ";
  Workplace place;
};

// ---- traces ---------------------------------------------------------------------------------------------------------

// What begins in a trace and in which order, as deep as it lies.
std::vector<std::string> outline(const Json& trace) {
  std::vector<std::string> lines;
  std::size_t depth = 0;
  double before = 0;
  for (const Json& event : trace) {
    if (event["ph"] == "M") continue;
    EXPECT_GE(event["ts"], before);
    before = event["ts"];
    if (event["ph"] == "B") lines.push_back(std::string(2 * depth++, ' ') + event["name"].get<std::string>());
    if (event["ph"] == "E") {
      EXPECT_GT(depth, 0u);
      --depth;
    }
  }
  EXPECT_EQ(depth, 0u);
  return lines;
}

struct Apart {
  std::string name{};
  double begin = 0, end = 0;
  Json told{};  // at the end
};
// What lies on tracks of its own, in the order in which it began: each has one end, under its own number and name.
std::vector<Apart> apart(const Json& trace) {
  std::vector<Apart> all;
  std::map<std::string, std::size_t> open;
  for (const Json& event : trace) {
    if (event["ph"] != "b" && event["ph"] != "e") continue;
    EXPECT_EQ(event["cat"], "exchange");
    EXPECT_EQ(event["pid"], trace[0]["pid"]);
    const std::string id = event["id2"]["local"];
    if (event["ph"] == "b") {
      EXPECT_TRUE(open.emplace(id, all.size()).second) << event;
      all.push_back({event["name"], event["ts"]});
      continue;
    }
    const auto at = open.find(id);
    EXPECT_NE(at, open.end()) << event;
    if (at == open.end()) continue;
    Apart& one = all[at->second];
    EXPECT_EQ(event["name"], one.name);
    one.end = event["ts"];
    one.told = event["args"];
    open.erase(at);
  }
  EXPECT_TRUE(open.empty()) << trace;
  return all;
}

TEST_F(Watched, TracesAreNestedAndChangeNoBit) {
  place.make("y.npy", {2, 4, 5});
  const std::string command = "apply sync_batch_norm --input y.npy --grad-output y.npy --split batch --ranks 2 ";
  ASSERT_EQ(place.run(command + "--out o").code, 0);
  const Outcome outcome = place.run(command + "--out traced --trace t.{rank}.json --record records");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const std::string& name : place.list("o")) EXPECT_EQ(place.bytes("o/" + name), place.bytes("traced/" + name));
  for (const char* name : {"t.0.json", "t.1.json"}) {
    const auto lines = outline(json(name));
    const std::vector<std::string> first{"step", "  sync_batch_norm forward", "  sync_batch_norm backward"};
    ASSERT_GE(lines.size(), first.size());
    const auto step = std::find(lines.begin(), lines.end(), "step");
    ASSERT_GE(lines.end() - step, static_cast<std::ptrdiff_t>(first.size()));
    EXPECT_TRUE(std::equal(first.begin(), first.end(), step)) << json(name).dump(1);
  }
  const auto exchanges = apart(json("t.1.json"));
  for (const char* direction : {"forward", "backward"}) {
    const std::string call = std::string("sync_batch_norm ") + direction;
    const auto one = std::find_if(exchanges.begin(), exchanges.end(),
                                  [&](const Apart& other) { return other.name == "exchange of " + call; });
    ASSERT_NE(one, exchanges.end()) << call;
    EXPECT_LE(one->told["slowest"], 1);
    const Json trace = json("t.1.json");
    const auto begun = std::find_if(trace.begin(), trace.end(),
                                    [&](const Json& event) { return event["ph"] == "B" && event["name"] == call; });
    ASSERT_NE(begun, trace.end());
    EXPECT_GE(one->begin, (*begun)["ts"]);
    const auto ended = std::find_if(begun, trace.end(), [](const Json& event) { return event["ph"] == "E"; });
    EXPECT_LE(one->end, (*ended)["ts"]);
  }
}

TEST_F(Watched, ATraceOfAKilledProcessCanBeRead) {
  const pid_t child = place.start(std::string(job) + for_minutes + "--trace t.{rank}.json --ranks 2");
  ASSERT_TRUE(becomes([&] { return place.exists("t.1.json") && place.bytes("t.1.json").size() > 10000; }));
  ::kill(child, SIGKILL);
  EXPECT_EQ(place.wait(child).code, 128 + SIGKILL);
  for (const char* name : {"t.0.json", "t.1.json"}) EXPECT_GT(json(name).size(), 20u);
}

TEST_F(Watched, ATraceOfSeveralRanksHasAFileForEach) {
  const Outcome outcome = place.run(std::string(job) + "--trace t.json --ranks 2");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_EQ(outcome.err, "allnorm: --trace is t.json, must contain {rank}: every rank writes its own\n");
  EXPECT_EQ(place.run(std::string(job) + "--trace missing/t.{rank}.json --ranks 2").code, 3);
  EXPECT_FALSE(place.exists("o"));
}

// ---- records and what is made of them -------------------------------------------------------------------------------

TEST_F(Watched, AFailureIsDiagnosed) {
  place.write_bytes("x.1.npy", "no array");
  const Outcome outcome = place.run(std::string(job) + "--record records --ranks 3");
  ASSERT_EQ(outcome.code, 3);
  const Outcome told = place.run("diagnose records");
  EXPECT_EQ(told.code, 0) << told.err;
  EXPECT_TRUE(told.out.starts_with("Of 3 ranks, rank 1 failed: x.1.npy: ")) << told.out;
  EXPECT_NE(told.out.find("Look at the file that rank 1 (pid "), std::string::npos) << told.out;
  EXPECT_EQ(std::count(told.out.begin(), told.out.end(), '\n'), 1) << told.out;
}

TEST_F(Watched, TheLastCallsAreKept) {
  const Outcome outcome = place.run(std::string(job) + "--steps 1200 --record records --ranks 2");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json record = json("records/record.r1.json");
  ASSERT_EQ(record["calls"].size(), launch::RankWatch::kept_calls);
  EXPECT_GT(record["calls_before"], 0);
  std::uint64_t last = 0;
  double time = record["started"];
  for (const Json& call : record["calls"]) {
    if (call["layer"] == "sync_batch_norm" && call["direction"] == "forward") {
      last = call["call"];
      EXPECT_EQ(call["bytes"], (1 + 4 + 4) * sizeof(double));
      EXPECT_LE(call["began"], call["exchange"][0]);
      EXPECT_LE(call["exchange"][1], call["ended"]);
    }
    EXPECT_GE(call["began"], time);
    time = call["ended"];
  }
  EXPECT_EQ(last, 1199u);
  EXPECT_LE(time, record["written"]);
  EXPECT_TRUE(place.run("diagnose records").out.starts_with("Of 2 ranks, all finished. "));
}

// Each has its own time, bytes and end, in whichever order they end.
TEST_F(Watched, ExchangesThatOverlapAreToldApart) {
  launch::RankOptions options;
  options.record = place.path("records");
  options.trace = place.path("t.{rank}.json");
  harness::run(2, [&](const harness::World& world, Queue& queue) {
    launch::RankWatch watch(options, world->rank(), 2);
    const auto watched = watch.over(world);
    const auto begin = [&](const char* layer, std::size_t doubles) {
      return watched->start_exchange({Header(layer, Direction::forward, 0), std::vector<double>(doubles, 1.0), 0, {}},
                                     queue);
    };
    const auto count = [&](const char* layer) { return watch.metrics()->exchanges[{layer, Direction::forward}].count; };
    Pending first = begin("first", 3), second = begin("second", 5);
    EXPECT_EQ(second.wait().payload, std::vector<double>(5, 2.0));
    EXPECT_EQ(count("first"), 0u);
    EXPECT_EQ(count("second"), 1u);
    EXPECT_EQ(first.wait().payload, std::vector<double>(3, 2.0));
    EXPECT_EQ(count("first"), 1u);
    (void)begin("dropped", 1);
    watch.finished();
  });
  const Json calls = json("records/record.r1.json")["calls"];
  ASSERT_EQ(calls.size(), 3u);
  for (const auto& [at, name, doubles] : {std::tuple(0, "first", 3), std::tuple(1, "second", 5)}) {
    EXPECT_EQ(calls[at]["layer"], name);
    EXPECT_EQ(calls[at]["bytes"], doubles * sizeof(double));
    EXPECT_EQ(calls[at]["ended"], calls[at]["exchange"][1]);
  }
  EXPECT_LT(calls[1]["ended"], calls[0]["ended"]);
  EXPECT_TRUE(calls[2]["ended"].is_null());
  EXPECT_TRUE(outline(json("t.1.json")).empty());
  const auto drawn = apart(json("t.1.json"));
  ASSERT_EQ(drawn.size(), 3u);
  EXPECT_LT(drawn[1].begin, drawn[0].end);
  EXPECT_LT(drawn[1].end, drawn[0].end);
  EXPECT_TRUE(drawn[2].told["failed"]);
}

// Begun in one call, ended in a later one or after it, as halves of calls do: calls lie within steps all the same.
TEST_F(Watched, AnExchangeMayEndAfterItsCall) {
  launch::RankOptions options;
  options.trace = place.path("t.{rank}.json");
  harness::run(2, [&](const harness::World& world, Queue& queue) {
    launch::RankWatch watch(options, world->rank(), 2);
    const auto watched = watch.over(world);
    std::optional<Pending> under_way;
    for (const char* layer : {"first", "second"}) {
      const launch::WatchStep step(&watch);
      const launch::WatchCall call(&watch, layer, Direction::forward);
      Pending own = watched->start_exchange({Header(layer, Direction::forward, 0), {1.0}, 0, {}}, queue);
      if (under_way) under_way->wait();
      under_way.emplace(std::move(own));
    }
    under_way->wait();
  });
  for (const char* name : {"t.0.json", "t.1.json"}) {
    const std::vector<std::string> lines{"step", "  first forward", "step", "  second forward"};
    EXPECT_EQ(outline(json(name)), lines);
    const auto drawn = apart(json(name));
    ASSERT_EQ(drawn.size(), 2u);
    for (std::size_t i = 0; i < 2; ++i)
      EXPECT_EQ(drawn[i].name, i == 0 ? "exchange of first forward" : "exchange of second forward");
    EXPECT_LT(drawn[1].begin, drawn[0].end);
  }
}

TEST_F(Watched, SigtermLeavesRecords) {
  const pid_t child = place.start(std::string(job) + for_minutes + "--record records --trace t.{rank}.json --ranks 2");
  ASSERT_TRUE(becomes([&] { return place.exists("t.1.json") && place.bytes("t.1.json").size() > 10000; }));
  const auto start = std::chrono::steady_clock::now();
  ::kill(child, SIGTERM);
  EXPECT_EQ(place.wait(child).code, 128 + SIGTERM);
  EXPECT_LE(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
  const Json record = json("records/record.r0.json");
  EXPECT_EQ(record["end"]["how"], "SIGTERM");
  EXPECT_GT(record["calls"].size(), 3u);
  const Outcome told = place.run("diagnose records");
  EXPECT_TRUE(told.out.starts_with("Of 2 ranks, ranks 0 and 1 were ended from outside (SIGTERM). ")) << told.out;
}

TEST_F(Watched, WhatIsNoRecordIsCode3) {
  const auto expect_bad = [&](const std::string& words, const std::string& line) {
    const Outcome outcome = place.run("diagnose " + words);
    EXPECT_EQ(outcome.code, 3);
    EXPECT_TRUE(outcome.err.starts_with("allnorm: " + line)) << outcome.err;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
  };
  expect_bad("nowhere", "nowhere: cannot be read: ");
  expect_bad(".", ".: has no record.r<rank>.json, must be the folder of a job's --record");
  for (
      const auto& [bytes, line] : std::initializer_list<std::pair<const char*, const char*>>{
          {"{\"event\": \"record\", ]", "is no JSON from byte 21 on"},
          {"{}", "is no record that a rank has left: "},
          {"[1]", "is no record that a rank has left: "},
          {"{\"event\": \"late\"}", "has no event \"record\""},
          {"{\"event\": \"record\", \"format\": 7}", "has format 7, must be 1"},
          {"{\"event\": \"record\", \"format\": 1, \"rank\": 2, \"ranks\": 2}", "is of rank 2 of 2"},
          {"{\"event\": \"record\", \"format\": 1, \"rank\": 1e99, \"ranks\": 2}",
           "is no record that a rank has left: "},
          {"{\"event\": \"record\", \"format\": 18446744073709551615}", "has format 9223372036854775807, must be 1"},
          {R"({"event": "record", "format": 1, "rank": 0, "ranks": 2, "host": "h", "pid": 1, "started": 1, "written": 2,
                "end": {"how": "failed", "kind": "odd", "line": "l", "code": 1}, "calls": []})",
           "has a failure of kind 'odd', must be own, mismatch, late or peer"},
      }) {
    place.write_bytes("record.r0.json", bytes);
    expect_bad(".", std::string("./record.r0.json: ") + line);
  }
  EXPECT_EQ(place.run("diagnose").code, 2);
  EXPECT_EQ(place.run("diagnose a b").code, 2);
}

// Of what ranks leave in other cases, the words.
TEST(Diagnosis, NamesWhoEndedTheJob) {
  using launch::RankRecord;
  const auto of = [](int rank, const char* how, const char* kind, const char* line, int code) {
    return RankRecord{.rank = rank,
                      .ranks = 3,
                      .host = "node1",
                      .pid = 70 + rank,
                      .started = 100,
                      .written = 110,
                      .how = how,
                      .kind = kind,
                      .line = line,
                      .code = code,
                      .where = "bn, call 3, forward",
                      .under_way = true,
                      .exchanging = true,
                      .since = 2};
  };
  const std::string line = "bn, call 3, forward: rank 2 is missing, not done after 2 s";
  RankRecord late = of(0, "failed", "late", line.c_str(), 5), other = of(1, "failed", "late", line.c_str(), 5);
  late.missing = other.missing = {2};
  EXPECT_EQ(
      launch::diagnosis_of({late, other}),
      "Of 3 ranks, rank 2 was late: " + line +
          ". Ranks 0 and 1 waited for other ranks at bn, call 3, forward, for 2 s; rank 2 left no record. Look at "
          "rank 2 first: it was killed (by the system for want of memory?), was stopped, or hangs. If it is only "
          "slow, give it time with --timeout.");

  RankRecord slow = of(2, "it did not come back, and its process left", "", "", 0);
  slow.where = "bn, call 2, backward";
  slow.exchanging = false;
  EXPECT_EQ(
      launch::diagnosis_of({late, other, slow}),
      "Of 3 ranks, rank 2 was late: " + line +
          ". Ranks 0 and 1 waited for other ranks at bn, call 3, forward, for 2 s; rank 2 was in its own work at bn, "
          "call 2, backward, for 2 s. Look at rank 2 (pid 72 on node1) first: it was stopped, or its own work took "
          "longer "
          "than --timeout allows.");

  const std::string differs = "rank 1: bn, call 3, forward: eps is 0.1, must be 1e-05 as on rank 0";
  const std::string told = launch::diagnosis_of({of(0, "failed", "mismatch", differs.c_str(), 4),
                                                 of(1, "failed", "mismatch", differs.c_str(), 4),
                                                 of(2, "failed", "peer", "rank 0 failed", 5)});
  EXPECT_TRUE(told.starts_with("Of 3 ranks, ranks 0 and 1 found that they disagree: " + differs + ". ")) << told;

  RankRecord old = of(2, "finished", "", "", 0);
  old.started = 40;
  old.written = 50;
  EXPECT_NE(launch::diagnosis_of({of(0, "finished", "", "", 0), of(1, "finished", "", "", 0), old})
                .find("What rank 2 left in the folder is older than the job, and was not used."),
            std::string::npos);
}

// ---- metrics --------------------------------------------------------------------------------------------------------

#if ALLNORM_HAVE_PROMETHEUS

// The answer to one line of HTTP, to its end; empty where nobody listens. Closes the socket.
std::string ask_at(int socket, int port, const std::string& line) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  const std::string request = line + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
  if (::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 &&
      ::send(socket, request.data(), request.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request.size()))
    for (char bytes[4096];;) {
      const ssize_t size = ::recv(socket, bytes, sizeof bytes, 0);
      if (size <= 0) break;
      answer.append(bytes, static_cast<std::size_t>(size));
    }
  ::close(socket);
  return answer;
}
std::string ask(int port, const std::string& line) {
  return ask_at(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port, line);
}

// The sample of that name and labels.
std::optional<double> sample(const std::string& answer, const std::string& name) {
  const auto at = answer.find("\n" + name + " ");
  if (at == answer.npos) return std::nullopt;
  return std::atof(answer.c_str() + at + name.size() + 2);
}

// The port that the program says it has picked.
int picked(const Workplace& place) {
  int port = 0;
  EXPECT_TRUE(becomes([&] {
    const std::string text = place.exists(".stderr") ? place.bytes(".stderr") : "";
    const std::string before = "allnorm: metrics: http://127.0.0.1:";
    const auto at = text.find(before);
    if (at == text.npos || text.find("/metrics\n") == text.npos) return false;
    port = std::atoi(text.c_str() + at + before.size());
    return true;
  }));
  return port;
}

TEST_F(Watched, MetricsOfAJobThatHangs) {
  const pid_t child = place.start(std::string(job) + for_minutes + "--metrics 0 --ranks 2");
  const int port = picked(place);
  const std::string labels = "{rank=\"1\",layer=\"sync_batch_norm\",direction=\"forward\"}";
  std::string answer;
  ASSERT_TRUE(becomes([&] {
    answer = ask(port, "GET /metrics");
    return sample(answer, "allnorm_steps_total{rank=\"0\"}").value_or(0) > 10 &&
           sample(answer, "allnorm_arrival_skew_seconds" + labels).has_value();
  })) << answer;
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200 ")) << answer;
  EXPECT_GT(sample(answer, "allnorm_exchange_bytes_total" + labels), 10 * 9 * sizeof(double));
  EXPECT_GT(sample(answer, "allnorm_exchange_seconds_count" + labels), 10);
  EXPECT_LT(sample(answer, "allnorm_seconds_since_last_exchange{rank=\"0\"}"), 5);
  const auto slowest = sample(answer, "allnorm_slowest_rank" + labels);
  EXPECT_TRUE(slowest == 0 || slowest == 1);
  for (const char* other : {"GET /", "GET /metrics.html", "POST /metrics", "PUT /metrics", "DELETE /metrics"})
    EXPECT_FALSE(ask(port, other).starts_with("HTTP/1.1 200 ")) << other;

  const auto thread = thread_named(child, "rank 1");
  ASSERT_TRUE(thread);
  {
    HeldThread held(*thread);
    if (held) {
      EXPECT_TRUE(becomes([&] {
        return sample(ask(port, "GET /metrics"), "allnorm_seconds_since_last_exchange{rank=\"0\"}").value_or(0) > 1;
      }));
    }
    ::kill(child, SIGKILL);
    if (held) held.gone(30);
  }
  place.wait(child);
}

TEST_F(Watched, MetricsOfATraining) {
  if (place.run("train --epochs none").code == 6) GTEST_SKIP() << "this build has no libtorch";
  const pid_t child =
      place.start("train --data " + of_project("data/digits") +
                  " --norm cross_iteration_batch_norm:renorm=true:window=2:burn_in=0 --ranks 2 --batch-per-rank 64 "
                  "--epochs 100000 --checkpoint c.st --metrics 0");
  const int port = picked(place);
  std::string answer;
  const std::string distance = "allnorm_window_distance{rank=\"0\",layer=\"norm1\",lag=\"1\",statistic=\"mean\",kind=";
  ASSERT_TRUE(becomes([&] {
    answer = ask(port, "GET /metrics");
    return sample(answer, distance + "\"stale\"}").has_value() &&
           sample(answer, "allnorm_checkpoint_age_seconds{rank=\"0\"}").has_value();
  })) << answer;
  EXPECT_GT(sample(answer, "allnorm_steps_total{rank=\"1\"}"), 1);
  EXPECT_GT(sample(answer, distance + "\"stale\"}"), 0);
  EXPECT_TRUE(sample(answer, distance + "\"compensated\"}"));
  for (const char* over : {"mean", "max"})
    EXPECT_GE(sample(answer, std::string("allnorm_drift{rank=\"0\",layer=\"norm1\",over_channels=\"") + over + "\"}"),
              0);
  const auto clipped = sample(answer, "allnorm_clipped_share{rank=\"0\",layer=\"norm1\"}");
  EXPECT_TRUE(clipped >= 0 && clipped <= 1) << answer;
  EXPECT_LT(sample(answer, "allnorm_checkpoint_age_seconds{rank=\"0\"}"), 60);
  EXPECT_EQ(sample(answer, "allnorm_errors_total{rank=\"0\"}"), 0);
  EXPECT_GT(sample(answer, "allnorm_exchange_seconds_count{rank=\"1\",layer=\"gradients\",direction=\"gradients\"}"),
            1);
  ::kill(child, SIGKILL);
  place.wait(child);
}

TEST_F(Watched, APortThatIsTakenIsAWarning) {
  const pid_t child = place.start(std::string(job) + for_minutes + "--metrics 0 --ranks 2");
  const int port = picked(place);
  Workplace other;
  other.make("x.0.npy", {1, 4, 5});
  const std::string where = std::to_string(port);
  const Outcome outcome = other.run("apply batch_norm --input x.0.npy --out o --metrics " + where);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("allnorm: warning: --metrics: 127.0.0.1:" + where + " cannot be listened at"),
            std::string::npos)
      << outcome.err;
  ::kill(child, SIGKILL);
  place.wait(child);
}

// Who asks is answered when there is a file to spare again; meanwhile the thread does not spin.
TEST(Metrics, WaitForAFileToSpare) {
  testing::internal::CaptureStderr();
  const launch::MetricsServer server("0", 0, false, [] { return std::vector<launch::RankMetrics>(1); });
  const std::string told = testing::internal::GetCapturedStderr(), before = "http://127.0.0.1:";
  ASSERT_NE(told.find(before), told.npos) << told;
  const int port = std::atoi(told.c_str() + told.find(before) + before.size());
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const auto cpu_seconds = [] {
    timespec time{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  std::string answer;
  std::vector<int> taken;
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const rlimit few{std::min<rlim_t>(limit.rlim_cur, 256), limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  for (int file = 0; (file = ::dup(socket)) >= 0;) taken.push_back(file);
  std::thread asks([&] { answer = ask_at(socket, port, "GET /metrics"); });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const double start = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  EXPECT_LT(cpu_seconds() - start, 0.2);
  for (const int file : taken) ::close(file);
  asks.join();
  EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200 OK\r\n")) << answer;
}

// The port of a process is that of the option and its number on the machine, which is its rank where no launcher says
// more.
TEST(Metrics, HaveAPortThatThereIs) {
  testing::internal::CaptureStderr();
  const launch::MetricsServer server("65535", 1, true, [] { return std::vector<launch::RankMetrics>(1); });
  const std::string told = testing::internal::GetCapturedStderr();
  EXPECT_NE(told.find("--metrics: 127.0.0.1:65536 cannot be listened at, there are none: a port is at most 65535"),
            told.npos)
      << told;
}

TEST_F(Watched, APortIsANumber) {
  for (const char* bad : {"many", "-1", "65536", "1x", ":9000", "127.0.0.1:"}) {
    const Outcome outcome = place.run(std::string(job) + "--metrics=" + bad);
    EXPECT_EQ(outcome.code, 2);
    EXPECT_EQ(outcome.err,
              std::string("allnorm: --metrics is '") + bad + "', must be [ADDRESS:]PORT with a port of 0 to 65535\n");
  }
}

#else

TEST_F(Watched, MetricsOfABuildWithoutPrometheus) {
  const Outcome outcome = place.run(std::string(job) + "--metrics 9000");
  EXPECT_EQ(outcome.code, 6);
  EXPECT_TRUE(
      outcome.err.starts_with("allnorm: --metrics is 9000, must not be given: this build has no prometheus-cpp"))
      << outcome.err;
  EXPECT_TRUE(outcome.one_line());
}

#endif

}  // namespace
}  // namespace allnorm::test
