// What a commit of several files has done so far, so that another process can finish or undo it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace allnorm::launch {

/// What one rank renames in one folder. The i-th file's backup is leftover_name(stem, Leftover::backup, i).
struct Journal {
  struct File {
    std::string temporary{}, name{};
    ino_t inode = 0;  // of the temporary, also under its new name
  };
  std::string home{};  ///< where the decision is; empty: in the journal's own folder
  std::string run{}, stem{};
  std::vector<std::string> others{};  ///< home's journal only: folders that have journals of the same stem
  std::vector<File> files{};
};
std::string text_of(const Journal& journal);

/// Decides once and for all what becomes of a run's files, unless that is decided already. True: they stay.
bool decide(const std::string& home, const std::string& run, bool keep);
/// Removes the decision if no journal in `home` needs it any more.
void remove_decision(const std::string& home, const std::string& run);
/// Does in one folder what was decided. False when something could not be done: the journal must stay.
bool settle(const std::string& folder, const Journal& journal, bool keep);

enum class Mended : std::uint8_t { done, busy, failed };
/// Settles the journal of a process that is gone, in this folder and in those that it names, and removes it. busy: the
/// process lives.
Mended mend_journal(const std::string& folder, const std::string& name);

}  // namespace allnorm::launch
