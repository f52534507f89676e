// Writing several files, of several ranks, all or none.
#include "launch/files/staged_files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <ranges>
#include <utility>

#include "launch/files/input_file.hpp"
#include "launch/files/leftovers.hpp"

namespace allnorm::launch {
namespace {

[[noreturn]] void cannot_write(const std::string& path, int error, Where where = Where::here()) {
  bad_file(path, "cannot be written: " + system_reason(error), where);
}

}  // namespace

StagedFiles::StagedFiles(const std::string& home, std::string run, int rank)
    : home_(std::filesystem::canonical(home).string()), run_(std::move(run)), stem_(rank_stem(run_, rank)) {}

StagedFiles::~StagedFiles() {
  if (!settled_) settle(false);
}

AtomicFile StagedFiles::make(const std::string& path) { return AtomicFile(path, stem_); }

std::string StagedFiles::path_of(const Part& part) const {
  return part.folder + "/" + leftover_name(stem_, Leftover::journal);
}

// Makes the journal of a folder: as long as it is locked, files of the stem belong to a process that lives.
StagedFiles::Part& StagedFiles::part_of(const std::string& folder) {
  for (Part& part : parts_)
    if (part.folder == folder) return part;
  Part part{folder, -1, {folder == home_ ? "" : home_, run_, stem_, {}, {}}, {}, {}};
  const std::string path = path_of(part);
  do {
    part.descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (part.descriptor < 0) cannot_write(path, errno);
    if (!lock_new(part.descriptor)) ::close(std::exchange(part.descriptor, -1));
  } while (part.descriptor < 0);
  return parts_.emplace_back(std::move(part));
}

void StagedFiles::add(AtomicFile file) {
  part_of(home_);
  Part& part = part_of(file.folder());
  if (!part.taken.insert(file.name()).second)
    bad_file(file.path(), "is written twice in one run, must be written once");
  AtomicFile::Temporary temporary = file.release();
  part.journal.files.push_back({std::move(temporary.name), file.name(), temporary.inode});
  part.paths.push_back(file.path());
}

void StagedFiles::prepare() {
  for (Part& part : std::views::reverse(parts_)) {  // home's last
    if (part.folder == home_)
      for (const Part& other : parts_)
        if (other.folder != home_) part.journal.others.push_back(other.folder);
    const std::string text = text_of(part.journal);
    const int error = write_all(part.descriptor, std::as_bytes(std::span(text)));
    if (error != 0) cannot_write(path_of(part), error);
    ::syncfs(part.descriptor);  // one call for all the files
  }
  prepared_ = true;
}

void StagedFiles::rename() {
  for (const Part& part : parts_) {
    for (std::size_t i = 0; i < part.paths.size(); ++i) {
      const Journal::File& file = part.journal.files[i];
      const std::string target = part.folder + "/" + file.name, temporary = part.folder + "/" + file.temporary;
      const std::string backup = part.folder + "/" + leftover_name(stem_, Leftover::backup, i);
      struct stat status {};
      if (::lstat(target.c_str(), &status) == 0) {
        if (!S_ISREG(status.st_mode)) bad_file(part.paths[i], "is no file any more, must be one or not exist");
        // A second name, so that the first is there at all times; not every file system has that.
        if (::link(target.c_str(), backup.c_str()) != 0 && std::rename(target.c_str(), backup.c_str()) != 0)
          cannot_write(part.paths[i], errno);
      }
      if (std::rename(temporary.c_str(), target.c_str()) != 0) cannot_write(part.paths[i], errno);
    }
    sync_folder(part.folder);
  }
}

bool StagedFiles::settle(bool keep) {
  settled_ = true;
  const bool kept = prepared_ ? decide(home_, run_, keep) : keep && parts_.empty();
  bool well = true;
  for (Part& part : std::views::reverse(parts_)) {  // home's last: it names the others
    well &= launch::settle(part.folder, part.journal, kept);
    if (well) ::unlink(path_of(part).c_str());  // otherwise the next run tries
    ::close(part.descriptor);
  }
  if (!parts_.empty() && well) remove_decision(home_, run_);
  parts_.clear();
  return kept;
}

}  // namespace allnorm::launch
