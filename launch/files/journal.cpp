// What a commit of several files has done so far, so that another process can finish or undo it.
#include "launch/files/journal.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <optional>
#include <string_view>

#include "launch/files/leftovers.hpp"

namespace allnorm::launch {
namespace {

// A journal is a list of words that end with a zero byte, as no name has one. It counts when it has its last word.
constexpr std::string_view first_word = "allnorm journal 1", last_word = "end";

std::optional<Journal> parse(std::string_view text, const std::string& stem) {
  std::vector<std::string> words;
  for (auto end = text.find('\0'); end != text.npos; end = text.find('\0')) {
    words.emplace_back(text.substr(0, end));
    text.remove_prefix(end + 1);
  }
  if (words.size() < 4 || words.front() != first_word || words.back() != last_word) return std::nullopt;
  Journal journal{words[1], words[2], stem, {}, {}};
  for (std::size_t i = 3; i + 1 < words.size();) {
    if (words[i] == "other" && i + 2 < words.size()) {
      journal.others.push_back(words[i + 1]);
      i += 2;
    } else if (words[i] == "file" && i + 4 < words.size()) {
      Journal::File file{words[i + 1], words[i + 2], 0};
      std::from_chars(words[i + 3].data(), words[i + 3].data() + words[i + 3].size(), file.inode);
      journal.files.push_back(std::move(file));
      i += 4;
    } else {
      return std::nullopt;
    }
  }
  return journal;
}

std::string read_all(int descriptor) {
  std::string text;
  std::array<char, 1 << 14> part;
  for (ssize_t got = 0; (got = ::read(descriptor, part.data(), part.size())) > 0 || (got < 0 && errno == EINTR);)
    if (got > 0) text.append(part.data(), static_cast<std::size_t>(got));
  return text;
}

std::optional<ino_t> inode_of(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return std::nullopt;
  return status.st_ino;
}

bool removed(const std::string& path) { return ::unlink(path.c_str()) == 0 || errno == ENOENT; }

// A name that someone else has given to another file since then is left alone.
bool undo(const std::string& target, const std::string& backup, const std::string& temporary, ino_t ours) {
  const auto now = inode_of(target), before = inode_of(backup);
  if (before && (!now || *now == ours)) {
    if (std::rename(backup.c_str(), target.c_str()) != 0) return false;
  } else if (!before && now && *now == ours) {
    if (!removed(target)) return false;
  }
  return removed(backup) && removed(temporary);
}

}  // namespace

std::string text_of(const Journal& journal) {
  std::string text;
  const auto add = [&text](std::string_view word) { text.append(word).push_back('\0'); };
  add(first_word);
  add(journal.home);
  add(journal.run);
  for (const std::string& other : journal.others) {
    add("other");
    add(other);
  }
  for (const Journal::File& file : journal.files) {
    add("file");
    add(file.temporary);
    add(file.name);
    add(std::to_string(file.inode));
  }
  add(last_word);
  return text;
}

// A file of that name keeps, a folder undoes: both are made at once or not at all, and only one of them can be there.
bool decide(const std::string& home, const std::string& run, bool keep) {
  const std::string path = home + "/" + leftover_name(run, Leftover::decision);
  if (!keep)
    ::mkdir(path.c_str(), 0777);
  else if (const int made = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); made >= 0)
    ::close(made);
  sync_folder(home);
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

void remove_decision(const std::string& home, const std::string& run) {
  const auto left = leftovers_in(home);
  if (std::any_of(left.begin(), left.end(),
                  [&](const auto& one) { return one.second.kind == Leftover::journal && one.second.run == run; }))
    return;
  std::remove((home + "/" + leftover_name(run, Leftover::decision)).c_str());
}

bool settle(const std::string& folder, const Journal& journal, bool keep) {
  bool well = true;
  for (std::size_t i = 0; i < journal.files.size(); ++i) {
    const Journal::File& file = journal.files[i];
    const std::string backup = folder + "/" + leftover_name(journal.stem, Leftover::backup, i);
    well &= keep ? removed(backup) : undo(folder + "/" + file.name, backup, folder + "/" + file.temporary, file.inode);
  }
  sync_folder(folder);
  return well;
}

Mended mend_journal(const std::string& folder, const std::string& name) {
  const std::string path = folder + "/" + name;
  const int descriptor = take_over(path);
  if (descriptor < 0) return errno == EWOULDBLOCK ? Mended::busy : errno == ENOENT ? Mended::done : Mended::failed;
  Mended mended = Mended::done;
  std::optional<Journal> journal;
  // Without its end nothing had been renamed; its temporaries are swept with the others.
  if (const auto parts = parse_leftover(name)) journal = parse(read_all(descriptor), parts->stem);
  if (journal) {
    for (const std::string& other : journal->others)
      if (const Mended there = mend_journal(other, name); mended == Mended::done) mended = there;
    const std::string& home = journal->home.empty() ? folder : journal->home;
    if (mended == Mended::done && !settle(folder, *journal, decide(home, journal->run, false))) mended = Mended::failed;
  }
  if (mended == Mended::done) ::unlink(path.c_str());
  ::close(descriptor);
  if (mended == Mended::done && journal && journal->home.empty()) remove_decision(folder, journal->run);
  return mended;
}

}  // namespace allnorm::launch
