// Memory of CPU queues, which keep what is given back: not without end, not from who needs it, and not across a fork.
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <fstream>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#include "allnorm/device.hpp"
#include "harness.hpp"

namespace cpu_memory_test {

// There in a process of these sanitizers, whether or not this file is compiled with one.
extern "C" {
__attribute__((weak)) void __asan_init();
__attribute__((weak)) void __tsan_init();
}

namespace {

using namespace allnorm;

const bool under_tsan = &__tsan_init != nullptr, memory_is_the_sanitizers = under_tsan || &__asan_init != nullptr;

constexpr std::size_t mebibyte = 1 << 20;

/// So many bytes in blocks of 4 MiB, given back at once.
void use(std::size_t bytes, Queue& queue) {
  std::vector<Buffer<std::byte>> blocks;
  for (; bytes > 0; bytes -= 4 * mebibyte) blocks.emplace_back(4 * mebibyte, queue, Fill::none);
}

/// What `child` returns in a child process; 128 + signal where one ended it, as after 20 seconds.
int in_a_child(const std::function<int()>& child) {
  const pid_t process = ::fork();
  if (process == 0) {
    ::alarm(20);
    ::_exit(child());
  }
  int status = 0;
  ::waitpid(process, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(CpuMemory, OfASizeThatDoesNotFitIsRefused) {
  Queue queue = Queue::cpu();
  constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
  for (const std::size_t size : {most, most - 1, most - 63, most - 64, most - 127})
    EXPECT_NE(
        harness::error_of([&] { Buffer<std::byte>(size, queue, Fill::none); }).find("must have at most 2^62 bytes"),
        std::string::npos)
        << size;
}

TEST(CpuMemory, IsNotKeptWithoutEnd) {
  if (memory_is_the_sanitizers) GTEST_SKIP() << "the sanitizer has its own memory";
  Queue queue = Queue::cpu();
  const auto in_use = [] {
    const struct mallinfo2 info = ::mallinfo2();
    return info.uordblks + info.hblkhd;
  };
  const std::size_t before = in_use();
  use(1024 * mebibyte, queue);
  EXPECT_LE(in_use(), before + 257 * mebibyte);
  EXPECT_GE(in_use(), before + 64 * mebibyte);  // it is kept at all
}

TEST(CpuMemory, IsFreedWhereThereIsNoOther) {
  if (memory_is_the_sanitizers) GTEST_SKIP() << "the sanitizer reserves addresses beyond any limit";
  Queue queue = Queue::cpu();
  EXPECT_EQ(in_a_child([&] {
              use(256 * mebibyte, queue);
              std::size_t pages = 0;
              std::ifstream("/proc/self/statm") >> pages;
              const rlim_t now = pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
              const rlimit limit{now + 16 * mebibyte, now + 16 * mebibyte};
              if (::setrlimit(RLIMIT_AS, &limit) != 0) return 1;
              return harness::error_of([&] { Buffer<std::byte>(128 * mebibyte, queue, Fill::none); }).empty() ? 0 : 2;
            }),
            0);
}

TEST(CpuMemory, IsThereInTheChildOfAForkBesideAThreadThatUsesIt) {
  if (under_tsan) GTEST_SKIP() << "the thread sanitizer does not follow a fork beside threads";
  Queue queue = Queue::cpu();
  std::atomic<bool> done{false};
  std::thread other([&] {
    Queue own = Queue::cpu();
    while (!done) Buffer<std::byte>(100, own, Fill::none);
  });
  for (int i = 0; i < 50; ++i)
    ASSERT_EQ(in_a_child([&] {
                Buffer<std::byte> own(100, queue);
                return own.data() == nullptr ? 1 : 0;
              }),
              0);
  done = true;
  other.join();
}

}  // namespace
}  // namespace cpu_memory_test
