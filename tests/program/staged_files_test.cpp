// Several files appear together or not at all, whatever fails and whenever the process is killed.
#include "launch/files/staged_files.hpp"

#include <sys/stat.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <functional>
#include <map>
#include <thread>
#include <utility>

#include "files_support.hpp"
#include "launch/files/leftovers.hpp"
#include "runner.hpp"

namespace allnorm::launch {
namespace {

using files_support::bytes_of;
using files_support::expect_refused;
using files_support::TemporaryFolder;
using test::Outcome;
using test::Workplace;
namespace fs = std::filesystem;

const std::string run = "0123456789ab";

void put(StagedFiles& staged, const std::string& path, std::string_view content) {
  AtomicFile file = staged.make(path);
  file.write(content);
  staged.add(std::move(file));
}

TEST(StagedFiles, AppearTogetherAndLeaveNothingElse) {
  const TemporaryFolder folder;
  folder.put("b", "old");
  {
    StagedFiles staged(folder.path(), run, 0);
    for (const char* name : {"a", "b", "c"}) put(staged, folder / name, name);
    staged.prepare();
    EXPECT_FALSE(fs::exists(folder / "a"));
    EXPECT_EQ(bytes_of(folder / "b"), "old");
    staged.rename();
    EXPECT_TRUE(staged.settle(true));
  }
  for (const char* name : {"a", "b", "c"}) EXPECT_EQ(bytes_of(folder / name), name);
  EXPECT_EQ(folder.entries(), 3u);
}

TEST(StagedFiles, LeaveNothingWhenTheyAreDropped) {
  const TemporaryFolder folder;
  folder.put("a", "old");
  for (const int steps : {0, 1, 2}) {
    StagedFiles staged(folder.path(), run, 0);
    put(staged, folder / "a", "new");
    put(staged, folder / "b", "new");
    if (steps > 0) staged.prepare();
    if (steps > 1) staged.rename();
  }
  EXPECT_EQ(bytes_of(folder / "a"), "old");
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(StagedFiles, RefuseOneFileUnderTwoNames) {
  const TemporaryFolder folder;
  fs::create_directory(folder / "sub");
  fs::create_directory_symlink(folder.path(), folder / "link");
  folder.put("real", "old");
  fs::create_symlink(folder / "real", folder / "alias");
  StagedFiles staged(folder.path(), run, 0);
  put(staged, folder / "a", "");
  put(staged, folder / "real", "");
  for (const char* name : {"a", "sub/../a", "link/a", "./a", "alias"})
    expect_refused([&] { put(staged, folder / name, ""); }, folder / name, "written twice");
}

TEST(StagedFiles, ARenameThatFailsUndoesThoseBefore) {
  const TemporaryFolder folder;
  folder.put("a", "old");
  {
    StagedFiles staged(folder.path(), run, 0);
    for (const char* name : {"a", "b", "c"}) put(staged, folder / name, name);
    staged.prepare();
    fs::create_directory(folder / "c");
    expect_refused([&] { staged.rename(); }, folder / "c", "is no file any more");
    EXPECT_EQ(bytes_of(folder / "a"), "a");
  }
  EXPECT_EQ(bytes_of(folder / "a"), "old");
  EXPECT_FALSE(fs::exists(folder / "b"));
  EXPECT_TRUE(fs::is_directory(folder / "c"));
  EXPECT_EQ(folder.entries(), 2u);
}

// Runs `work` in a process that ends without a destructor, as one that is killed.
void in_a_killed_process(const std::function<void()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    work();
    ::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
}

enum Point { made, added, prepared, renamed, decided };

// One rank's way up to `last`.
void go(StagedFiles& staged, const std::vector<std::string>& paths, Point last) {
  for (const std::string& path : paths) {
    AtomicFile file = staged.make(path);
    file.write(std::string_view("new"));
    if (last == made) ::raise(SIGKILL);
    staged.add(std::move(file));
  }
  if (last >= prepared) staged.prepare();
  if (last >= renamed) staged.rename();
}

TEST(Recover, UndoesOrFinishesWhatAKilledProcessBegan) {
  for (const Point last : {made, added, prepared, renamed, decided}) {
    const TemporaryFolder folder;
    folder.put("a", "old");
    in_a_killed_process([&] {
      StagedFiles staged(folder.path(), run, 0);
      go(staged, {folder / "a", folder / "b"}, last);
      if (last == decided) decide(folder.path(), run, true);
      ::raise(SIGKILL);
    });
    EXPECT_GT(folder.entries(), 1u);
    recover(folder.path(), 0);
    EXPECT_EQ(bytes_of(folder / "a"), last == decided ? "new" : "old") << last;
    EXPECT_EQ(folder.entries(), last == decided ? 2u : 1u) << last;
  }
}

TEST(Recover, FindsFilesInOtherFoldersFromEitherSide) {
  for (const bool keep : {false, true})
    for (const bool from_home : {false, true}) {
      const TemporaryFolder home, other;
      other.put("state", "old");
      in_a_killed_process([&] {
        StagedFiles staged(home.path(), run, 0);
        go(staged, {home / "a", other / "state"}, renamed);
        if (keep) decide(home.path(), run, true);
        ::raise(SIGKILL);
      });
      recover(from_home ? home.path() : other.path(), 0);
      EXPECT_EQ(bytes_of(other / "state"), keep ? "new" : "old");
      EXPECT_EQ(other.entries(), 1u);
      recover(home.path(), 0);
      EXPECT_EQ(home.entries(), keep ? 1u : 0u);
    }
}

TEST(Recover, RanksShareOneDecision) {
  for (const bool keep : {false, true}) {
    const TemporaryFolder folder;
    StagedFiles first(folder.path(), run, 0);
    go(first, {folder / "a.r0"}, renamed);
    in_a_killed_process([&] {
      StagedFiles second(folder.path(), run, 1);
      go(second, {folder / "a.r1"}, renamed);
      ::raise(SIGKILL);
    });
    // Either the rank that lives decides, and the next run finishes for the other; or the next run comes first and
    // undoes, and the rank that lived, but slept, follows.
    if (!keep) recover(folder.path(), 0);
    EXPECT_EQ(first.settle(true), keep);
    recover(folder.path(), 0);
    EXPECT_EQ(folder.entries(), keep ? 2u : 0u);
  }
}

TEST(Recover, LeavesWhatIsNotItsOwn) {
  const TemporaryFolder folder;
  const char* const foreign[] = {".allnorm-notes.tmp", ".allnorm-0123456789ab-1.tmp.bak", ".allnorm-0123456789AB-1.tmp",
                                 ".allnorm-0123456789ab-1.old", "0123456789ab-1.tmp"};
  for (const char* name : foreign) folder.put(name, "mine");
  AtomicFile living(folder / "a");
  StagedFiles staged(folder.path(), run, 0);
  put(staged, folder / "b", "b");
  const std::size_t before = folder.entries();
  folder.put(".allnorm-00112233aabb-7.tmp", "of a process that is gone");
  folder.put(".allnorm-00112233aabb.3-7.tmp", "of a rank that is gone");
  fs::create_directory(folder / ".allnorm-00112233aabb.decision");
  recover(folder.path(), 0);
  EXPECT_EQ(folder.entries(), before);
  for (const char* name : foreign) EXPECT_EQ(bytes_of(folder / name), "mine") << name;
  living.commit();
  staged.prepare();
  staged.rename();
  EXPECT_TRUE(staged.settle(true));
  EXPECT_EQ(bytes_of(folder / "b"), "b");
}

TEST(Recover, LeavesWhatSomeoneElseWroteSince) {
  const TemporaryFolder folder;
  folder.put("a", "old");
  in_a_killed_process([&] {
    StagedFiles staged(folder.path(), run, 0);
    go(staged, {folder / "a", folder / "b"}, renamed);
    ::raise(SIGKILL);
  });
  folder.put("c", "later");
  fs::rename(folder / "c", folder / "a");
  recover(folder.path(), 0);
  EXPECT_EQ(bytes_of(folder / "a"), "later");
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(Recover, WaitsForARunThatIsCommitting) {
  const TemporaryFolder folder;
  StagedFiles staged(folder.path(), run, 0);
  go(staged, {folder / "a"}, renamed);
  std::thread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    staged.settle(true);
  });
  const auto begin = std::chrono::steady_clock::now();
  recover(folder.path(), 20);
  EXPECT_GT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(50));
  late.join();
  EXPECT_EQ(bytes_of(folder / "a"), "new");
  EXPECT_EQ(folder.entries(), 1u);
}

// As a rank does that comes to a folder which another has just made.
TEST(Recover, LeavesRunsThatBeginMeanwhile) {
  const TemporaryFolder folder;
  std::atomic<bool> done{false};
  std::thread other([&] {
    while (!done) recover(folder.path(), 0);
  });
  for (int i = 0; i < 40; ++i) {
    StagedFiles staged(folder.path(), stem_of(new_number()), 0);
    EXPECT_NO_THROW(go(staged, {folder / "a", folder / "b", folder / "c"}, renamed));
    EXPECT_TRUE(staged.settle(true));
  }
  done = true;
  other.join();
  EXPECT_EQ(folder.entries(), 3u);
}

// ---- the program ----------------------------------------------------------------------------------------------------

std::map<std::string, ino_t> inodes_of(const Workplace& place, std::string_view folder) {
  std::map<std::string, ino_t> inodes;
  for (const std::string& name : place.list(folder)) {
    struct stat status {};
    if (::stat(place.path(std::string(folder) + "/" + name).c_str(), &status) == 0) inodes[name] = status.st_ino;
  }
  return inodes;
}

TEST(KilledWhileCommitting, TheNextRunFindsAllFilesOrNone) {
  Workplace place;
  place.make("x.npy", {3, 2, 2});
  const std::string words = "apply batch_norm --input x.npy --out o --ranks 2 --steps 200 --save-state s.{rank}.st";
  ASSERT_EQ(place.run(words).code, 0);
  const auto old = inodes_of(place, "o");
  ASSERT_EQ(old.size(), 2u * 200 * 6);
  int hit = 0;  // processes that were killed with some files renamed and others not
  const char* const probes[] = {"output.r0.s0.npy", "var.r1.s100.npy", "num_batches_tracked.r0.s199.npy"};
  for (int trial = 0; trial < 12 && (trial < 3 || hit < 2); ++trial) {
    const auto before = inodes_of(place, "o");
    const std::string probe = probes[trial % 3];
    const pid_t child = place.start(words);
    struct stat status {};
    int ended = 0;
    while (::stat(place.path("o/" + probe).c_str(), &status) == 0 && status.st_ino == before.at(probe) && ended == 0) {
      siginfo_t info{};
      ended = ::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOHANG | WNOWAIT) == 0 ? info.si_pid : -1;
    }
    ::kill(child, SIGKILL);
    place.wait(child);
    const auto changed = [&](const auto& now) {
      std::size_t count = 0;
      for (const auto& [name, inode] : before) count += now.contains(name) && now.at(name) != inode;
      return count;
    };
    const std::size_t middle = changed(inodes_of(place, "o"));
    if (middle > 0 && middle < before.size()) ++hit;
    const Outcome next = place.run("apply batch_norm --input nowhere.npy --out o --save-state s.st");
    EXPECT_EQ(next.code, 3) << next.err;
    const auto after = inodes_of(place, "o");
    EXPECT_EQ(after.size(), before.size());  // nothing of ours is left
    EXPECT_TRUE(changed(after) == 0 || changed(after) == before.size()) << changed(after) << " after " << middle;
    for (const std::string& name : place.list(".")) EXPECT_FALSE(name.starts_with(".allnorm-")) << name;
  }
  EXPECT_GE(hit, 2);
}

// In a sticky folder a file of another user can be neither replaced nor linked to, although others can be made there.
TEST(ARenameThatTheSystemRefuses, LeavesAllRanksFilesAsTheyWere) {
  Workplace place;
  const std::string nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
  ASSERT_EQ(::chmod(place.path(".").c_str(), 0777), 0);
  if (::geteuid() != 0 || place.run("--version", nobody).code != 0) GTEST_SKIP() << "needs root, and setpriv";
  place.make("x.npy", {3, 4, 5});
  for (const bool ranks : {false, true}) {
    const std::string mine = ranks ? "o/mean.r1.npy" : "o/mean.npy", theirs = ranks ? "o/var.r1.npy" : "o/var.npy";
    fs::remove_all(place.path("o"));
    fs::create_directory(place.path("o"));
    ASSERT_EQ(::chmod(place.path("o").c_str(), 01777), 0);
    for (const std::string& name : {mine, theirs}) place.write_bytes(name, "old");
    ASSERT_EQ(::chown(place.path(mine).c_str(), 65534, 65534), 0);
    const Outcome outcome =
        place.run("apply batch_norm --input x.npy --out o" + std::string(ranks ? " --ranks 2" : ""), nobody);
    EXPECT_EQ(outcome.code, 3) << outcome.err;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
    EXPECT_NE(outcome.err.find(theirs + ": cannot be written: Operation not permitted"), std::string::npos)
        << outcome.err;
    EXPECT_EQ(bytes_of(place.path(mine)), "old");
    EXPECT_EQ(place.list("o").size(), 2u);
  }
}

TEST(SaveState, MustNotTakeTheNameOfAnOutput) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  fs::create_directory(place.path("o"));
  fs::create_directory_symlink(place.path("o"), place.path("link"));
  for (const std::string words :
       {"--save-state o/output.npy", "--save-state o/../o/output.npy", "--save-state link/mean.npy",
        "--ranks 2 --set sync=world --save-state o/var.r1.npy"}) {
    const Outcome outcome = place.run("apply batch_norm --input x.npy --out o " + words);
    EXPECT_EQ(outcome.code, 3) << words;
    EXPECT_TRUE(outcome.one_line()) << outcome.err;
    EXPECT_NE(outcome.err.find("must be another file"), std::string::npos) << outcome.err;
    EXPECT_TRUE(place.list("o").empty());
  }
}

TEST(SaveState, KeepsTheModeOfTheFileThatItReplaces) {
  Workplace place;
  place.make("x.npy", {3, 4, 5});
  place.write_bytes("s.st", "old");
  ASSERT_EQ(::chmod(place.path("s.st").c_str(), 0600), 0);
  ASSERT_EQ(place.run("apply batch_norm --input x.npy --out o --save-state s.st").code, 0);
  struct stat status {};
  ASSERT_EQ(::stat(place.path("s.st").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  EXPECT_GT(status.st_size, 3);
}

}  // namespace
}  // namespace allnorm::launch
