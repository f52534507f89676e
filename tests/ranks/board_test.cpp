// Memory in which ranks put messages for each other: what it holds and for how long, and how processes come by it.
#include "src/transport/board.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "src/transport/shared_memory.hpp"

namespace board_test {
namespace {

using namespace allnorm;

bool put(Board& board, std::uint64_t tag, const std::string& first, const std::string& second, std::size_t readers) {
  const std::span<const std::byte> parts[] = {std::as_bytes(std::span(first)), std::as_bytes(std::span(second))};
  return board.put(tag, parts, readers);
}
std::string found(const Board& board, std::size_t from, std::uint64_t tag) {
  const auto bytes = board.find(from, tag);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void let_go(Board& board, std::size_t from, std::uint64_t tag) { board.let_go(from, board.find(from, tag).data()); }

class Boards : public testing::Test {
 protected:
  const std::shared_ptr<std::byte> memory_ = zeros(Board::bytes_for(3));
  Board boards_[3] = {{memory_, 3, 0}, {memory_, 3, 1}, {memory_, 3, 2}};
};

TEST_F(Boards, HaveAMessageUntilAllHaveLetGoOfIt) {
  EXPECT_EQ(found(boards_[0], 1, 0), "");
  ASSERT_TRUE(put(boards_[1], 0, "one", "", 2));
  ASSERT_TRUE(put(boards_[1], 7, "an", "other", 2));
  for (const int reader : {0, 2}) {
    EXPECT_EQ(found(boards_[reader], 1, 0), "one");
    EXPECT_EQ(found(boards_[reader], 1, 7), "another");
    EXPECT_EQ(found(boards_[reader], 2, 7), "");
  }
  let_go(boards_[0], 1, 7);
  ASSERT_TRUE(put(boards_[1], 8, "more", "", 1));
  EXPECT_EQ(found(boards_[2], 1, 7), "another");
  let_go(boards_[2], 1, 7);
  ASSERT_TRUE(put(boards_[1], 9, "the last", "", 1));
  EXPECT_EQ(found(boards_[2], 1, 7), "");  // it could come again, of another exchange
  EXPECT_EQ(found(boards_[2], 1, 8), "more");
  EXPECT_EQ(found(boards_[2], 1, 9), "the last");
}

TEST_F(Boards, TakeWhatTheyHaveRoomFor) {
  EXPECT_FALSE(put(boards_[0], 1, std::string(Board::room, 'x'), "y", 1));
  EXPECT_EQ(found(boards_[1], 0, 1), "");
  for (std::uint64_t tag = 0; tag < Board::slots; ++tag)
    ASSERT_TRUE(put(boards_[0], tag, std::string(Board::room - 1, 'x'), std::to_string(tag), 1));
  EXPECT_FALSE(put(boards_[0], Board::slots, "z", "", 1));
  ASSERT_TRUE(put(boards_[1], Board::slots, "z", "", 1));  // each has its own
  for (std::uint64_t tag = 0; tag < Board::slots; ++tag)
    EXPECT_EQ(found(boards_[2], 0, tag), std::string(Board::room - 1, 'x') + std::to_string(tag));
  let_go(boards_[2], 0, 2);
  ASSERT_TRUE(put(boards_[0], Board::slots, "z", "", 1));
  EXPECT_EQ(found(boards_[2], 0, Board::slots), "z");
}

// Two ranks as fast as they can: each has what the other has put, and finds room again.
TEST_F(Boards, AreReadWhileOthersWrite) {
  constexpr std::uint64_t times = 20'000;
  std::atomic<std::uint64_t> wrong{0};
  const auto work = [&](std::size_t own, std::size_t peer) {
    for (std::uint64_t tag = 0; tag < times; ++tag) {
      while (!put(boards_[own], tag, std::to_string(tag), std::string(tag % 100, 'x'), 1)) std::this_thread::yield();
      while (boards_[own].find(peer, tag).empty()) std::this_thread::yield();
      if (found(boards_[own], peer, tag) != std::to_string(tag) + std::string(tag % 100, 'x')) ++wrong;
      let_go(boards_[own], peer, tag);
    }
  };
  std::thread other(work, 1, 0);
  work(0, 1);
  other.join();
  EXPECT_EQ(wrong, 0u);
}

constexpr std::size_t bytes = 1 << 16;
std::string file_of(const MemoryName& name) { return std::string("/dev/shm") + name.data(); }

TEST(SharedMemory, IsThereForOthersWithoutItsName) {
  MemoryName name{};
  std::shared_ptr<std::byte> memory, again;
  {
    const NamedMemory made(bytes);
    name = made.name();
    if (name.front() == '\0') GTEST_SKIP() << "this system shares no memory";
    EXPECT_TRUE(std::filesystem::exists(file_of(name)));
    memory = attach(name, bytes);
    again = attach(name, bytes);
    EXPECT_EQ(attach(name, bytes / 2), nullptr);
  }
  EXPECT_FALSE(std::filesystem::exists(file_of(name)));
  EXPECT_EQ(attach(name, bytes), nullptr);
  EXPECT_EQ(attach({}, bytes), nullptr);
  ASSERT_NE(memory, nullptr);
  ASSERT_NE(again, nullptr);
  EXPECT_EQ(std::count(memory.get(), memory.get() + bytes, std::byte{0}), static_cast<std::ptrdiff_t>(bytes));
  memory.get()[bytes - 1] = std::byte{7};
  EXPECT_EQ(again.get()[bytes - 1], std::byte{7});
}

TEST(SharedMemory, IsNotThereWhereItIsNotWanted) {
  const NamedMemory before(4096);
  ::setenv("ALLNORM_SHARED_MEMORY", "0", 1);
  const NamedMemory made(4096);
  EXPECT_EQ(made.name().front(), '\0');
  EXPECT_EQ(zeros(4096), nullptr);
  ::setenv("ALLNORM_SHARED_MEMORY", "1", 1);
  EXPECT_NE(zeros(4096), nullptr);
  EXPECT_EQ(NamedMemory(4096).name().front(), before.name().front());
  ::unsetenv("ALLNORM_SHARED_MEMORY");
}

TEST(SharedMemory, HasNoNameWhereItCannotBeMade) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto signal_before = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit less{bytes / 2, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &less), 0);
  const std::string refused = NamedMemory(bytes).name().data();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, signal_before);
  EXPECT_EQ(refused, "");
}

}  // namespace
}  // namespace board_test
