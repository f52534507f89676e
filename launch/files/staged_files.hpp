// Writing several files, of several ranks, all or none.
#pragma once

#include <deque>
#include <set>
#include <string>
#include <vector>

#include "launch/files/atomic_file.hpp"
#include "launch/files/journal.hpp"

namespace allnorm::launch {

/// The files that one rank of a run gives their names together with those of the other ranks:
///
///     add()...    everything is written under temporary names
///     prepare()   and is on the disk, with a journal of what will be renamed       -- all ranks are here
///     rename()    files get their names; what had them before is kept beside       -- all ranks are here
///     settle()    keeps or undoes; where it is settled first is decided for all ranks with the same `home`
///
/// A process that is killed at any point leaves a journal by which recover() does what was decided, and undoes where
/// nothing was. An object that is dropped before settle() undoes.
class StagedFiles {
 public:
  /// `home` is the folder where the ranks of the run leave journals and the decision; it exists. `run` is a
  /// stem that they share.
  StagedFiles(const std::string& home, std::string run, int rank);
  ~StagedFiles();
  StagedFiles(const StagedFiles&) = delete;
  StagedFiles& operator=(const StagedFiles&) = delete;

  /// A file to be written and added. Throws as AtomicFile.
  AtomicFile make(const std::string& path);
  /// Finishes `file` and keeps it. Throws invalid_input when it cannot be finished or is staged already, under this or
  /// another path.
  void add(AtomicFile file);
  /// Throws invalid_input.
  void prepare();
  /// Throws invalid_input; nothing is lost then, but files have new names until settle().
  void rename();
  /// True where the files stay: `keep` on all ranks.
  bool settle(bool keep);

 private:
  /// What is in one folder.
  struct Part {
    std::string folder;
    int descriptor;  // of the journal's file, locked
    Journal journal;
    std::vector<std::string> paths;  // of the files as the caller named them
    std::set<std::string> taken;     // names
  };
  Part& part_of(const std::string& folder);
  std::string path_of(const Part& part) const;  // of the journal's file

  std::string home_, run_, stem_;
  std::deque<Part> parts_;  // the first is home's
  bool prepared_ = false, settled_ = false;
};

}  // namespace allnorm::launch
