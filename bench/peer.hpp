// One side of bench/cpu_vs_peers: a program with subjects that it times call by call, as it is asked on its input, so
// that calls of several programs follow each other in any order.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <exception>
#include <functional>
#include <iostream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace allnorm::bench {

struct Case {
  std::string layer;  ///< batch_norm, layer_norm or group_norm (of 32 groups)
  std::vector<std::int64_t> shape;
  std::string dtype;
  bool channels_last;
  int threads;

  std::int64_t elements() const {
    std::int64_t product = 1;
    for (const std::int64_t extent : shape) product *= extent;
    return product;
  }
};

struct Call {
  std::string name;  ///< "SUBJECT PASS"
  std::function<void()> run;
};
using Calls = std::vector<Call>;  // forward before backward

/// Milliseconds per call. One thread: of CPU time, which other jobs on the machine lengthen least. More: of wall time.
inline double milliseconds(const std::function<void()>& call, int repetitions, int threads) {
  // GNU's OpenMP threads, of a peer called before, spin some 5 ms for more work, on a core that a thread here needs.
  std::this_thread::sleep_for(std::chrono::milliseconds(threads == 1 ? 3 : 30));
  call();  // the caches as this call leaves them
  const auto start = std::chrono::steady_clock::now();
  const std::clock_t cpu_start = std::clock();
  for (int i = 0; i < repetitions; ++i) call();
  const double cpu = 1e3 * static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC;
  const double wall = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  return (threads == 1 ? cpu : wall) / repetitions;
}

/// Says `name` and serves until the input ends:
///   "case LAYER SHAPE DTYPE channels_first|channels_last THREADS" with the words of what can be timed, in one line;
///   "time SUBJECT PASS CALLS" with milliseconds per call.
inline int serve(const std::string& name, const std::function<Calls(const Case&)>& subjects) {
  std::cout << name << std::endl;
  Calls calls;
  Case now;
  for (std::string line, word; std::getline(std::cin, line);) {
    std::istringstream in(line);
    in >> word;
    if (word == "case") {
      std::string shape, order;
      now.shape.clear();
      in >> now.layer >> shape >> now.dtype >> order >> now.threads;
      now.channels_last = order == "channels_last";
      std::istringstream extents(shape);
      for (std::string extent; std::getline(extents, extent, ',');) now.shape.push_back(std::stoll(extent));
      calls.clear();
      calls = subjects(now);
      for (const Call& call : calls) try {
          call.run();
          std::cout << call.name << ';';
        } catch (const std::exception&) {  // what a peer has not it says when it is called
        }
      std::cout << std::endl;
    } else {
      std::string subject, pass;
      int repetitions = 1;
      in >> subject >> pass >> repetitions;
      const auto named = [&](const Call& call) { return call.name == subject + ' ' + pass; };
      const auto call = std::find_if(calls.begin(), calls.end(), named);
      if (call == calls.end()) return 2;
      std::cout << milliseconds(call->run, repetitions, now.threads) << std::endl;
    }
  }
  return 0;
}

}  // namespace allnorm::bench
