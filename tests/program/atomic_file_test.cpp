// Files appear whole or not at all, and what cannot be written says why.
#include "launch/files/atomic_file.hpp"

#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <filesystem>
#include <utility>

#include "files_support.hpp"

namespace allnorm::launch {
namespace {

using files_support::bytes_of;
using files_support::expect_refused;
using files_support::TemporaryFolder;

// Makes every file of this process end at `bytes`: the write that goes beyond fails as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  void (*handler_)(int);
  rlimit before_{};
};

TEST(AtomicFile, AppearsOnlyWhenCommitted) {
  const TemporaryFolder folder;
  const std::string path = folder / "a";
  {
    AtomicFile file(path);
    file.write(std::string_view("hello"));
    EXPECT_FALSE(std::filesystem::exists(path));
    file.commit();
  }
  EXPECT_EQ(bytes_of(path), "hello");
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(AtomicFile, LeavesTheOldContentAndNoTemporaryWhenDropped) {
  const TemporaryFolder folder;
  const std::string path = folder.put("a", "old");
  {
    AtomicFile file(path);
    file.write(std::string(200000, 'x'));  // more than is buffered
    file.finish();
  }
  EXPECT_EQ(bytes_of(path), "old");
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(AtomicFile, WritesMoreThanItsBufferInAnyPieces) {
  const TemporaryFolder folder;
  std::string wanted;
  AtomicFile file(folder / "a");
  for (std::size_t i = 0; i < 60; ++i) {
    const std::string piece(i * i * 3, static_cast<char>('a' + i % 26));
    file.write(piece);
    wanted += piece;
  }
  AtomicFile moved(std::move(file));
  moved.commit();
  ASSERT_GT(wanted.size(), std::size_t{3} << 16);
  EXPECT_EQ(bytes_of(folder / "a"), wanted);
}

TEST(AtomicFile, TwoObjectsForOneTargetDoNotMix) {
  const TemporaryFolder folder;
  AtomicFile first(folder / "a"), second(folder / "a");
  first.write(std::string_view("first"));
  second.write(std::string_view("second"));
  second.commit();
  EXPECT_EQ(bytes_of(folder / "a"), "second");
  first.commit();
  EXPECT_EQ(bytes_of(folder / "a"), "first");
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(AtomicFile, FollowsASymbolicLink) {
  const TemporaryFolder folder;
  folder.put("real", "old");
  std::filesystem::create_symlink(folder / "real", folder / "link");
  AtomicFile file(folder / "link");
  file.write(std::string_view("new"));
  file.commit();
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(bytes_of(folder / "real"), "new");
}

TEST(AtomicFile, TakesANameAsLongAsTheFileSystemAllows) {
  const TemporaryFolder folder;
  const std::string path = folder / std::string(255, 'n');
  AtomicFile(path).commit();
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST(AtomicFile, RefusesWhatIsNotAFile) {
  const TemporaryFolder folder;
  expect_refused([&] { AtomicFile file(folder.path()); }, folder.path(), "is a directory");
  expect_refused([&] { AtomicFile file("/dev/null"); }, "/dev/null", "is not a regular file");
  const std::string fifo = folder / "fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  expect_refused([&] { AtomicFile file(fifo); }, fifo, "is not a regular file");
  const std::string missing = folder / "no/such/folder";
  expect_refused([&] { AtomicFile file(missing); }, missing, "No such file or directory");
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(AtomicFile, SaysWhyAWriteFailed) {
  const TemporaryFolder folder;
  const std::string path = folder.put("a", "old");
  {
    const FileSizeLimit limit(100000);
    AtomicFile file(path);
    expect_refused([&] { file.write(std::string(300000, 'x')); }, path, "File too large");
  }
  {
    const FileSizeLimit limit(10);
    AtomicFile file(path);
    file.write(std::string_view("these bytes stay in the buffer"));
    expect_refused([&] { file.commit(); }, path, "File too large");
  }
  EXPECT_EQ(bytes_of(path), "old");
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(AtomicFile, SaysWhyARenameFailed) {
  const TemporaryFolder folder;
  const std::string path = folder / "a";
  AtomicFile file(path);
  std::filesystem::create_directory(path);
  expect_refused([&] { file.commit(); }, path, "Is a directory");
}

TEST(AtomicFile, TakesNothingAfterItIsFinished) {
  const TemporaryFolder folder;
  AtomicFile file(folder / "a");
  file.finish();
  expect_refused([&] { file.write(std::string_view("late")); }, folder / "a", "is finished");
}

mode_t mode_of(const std::string& path) {
  struct stat status {};
  EXPECT_EQ(stat(path.c_str(), &status), 0);
  return status.st_mode & 07777;
}

TEST(AtomicFile, FollowsTheUmaskOrKeepsTheModeOfWhatItReplaces) {
  const TemporaryFolder folder;
  const mode_t before = umask(027);
  AtomicFile(folder / "new").commit();
  EXPECT_EQ(mode_of(folder / "new"), 0640u);
  for (const mode_t mode : {0600u, 0664u, 0444u}) {
    const std::string path = folder.put("a", "old");
    ASSERT_EQ(chmod(path.c_str(), mode), 0);
    AtomicFile(path).commit();
    EXPECT_EQ(mode_of(path), mode);
    EXPECT_EQ(bytes_of(path), "");
  }
  umask(before);
}

TEST(AtomicFile, KeepsTheOwnerOfWhatItReplaces) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can give a file away";
  const TemporaryFolder folder;
  const std::string path = folder.put("a", "old");
  ASSERT_EQ(chown(path.c_str(), 12345, 23456), 0);
  AtomicFile(path).commit();
  struct stat status {};
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, 12345u);
  EXPECT_EQ(status.st_gid, 23456u);
}

}  // namespace
}  // namespace allnorm::launch
