// Names and locks of files that exist only while a run writes, and what to do about those of a run that was killed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace allnorm::launch {

/// All of them begin with .allnorm-STEM. A temporary becomes a file; a backup is what a file had before; a journal
/// lists both; a decision says what becomes of them.
enum class Leftover : std::uint8_t { temporary, backup, journal, decision };

/// A random number of 48 bits, and its twelve hexadecimal digits: a stem that no other process has.
std::uint64_t new_number();
std::string stem_of(std::uint64_t number);
/// The stem of a rank's part of a run's commit.
std::string rank_stem(const std::string& run, int rank);
std::string leftover_name(const std::string& stem, Leftover kind, unsigned long number = 0);

/// One name, taken apart; nothing for every name that this program does not make.
struct LeftoverName {
  Leftover kind{};
  std::string stem{}, run{};
};
std::optional<LeftoverName> parse_leftover(std::string_view name);
/// All of a folder.
std::vector<std::pair<std::string, LeftoverName>> leftovers_in(const std::string& folder);

/// Locks a file that this process has just made, for as long as the descriptor is open: it tells others that its writer
/// lives. False when another process removed the file before. Where the file system has no locks nothing is ever swept.
bool lock_new(int descriptor);
/// Opens and locks a leftover of this user whose writer is gone. Otherwise -1, and errno: EWOULDBLOCK where it lives.
int take_over(const std::string& path);

/// 0, or the error.
int write_all(int descriptor, std::span<const std::byte> bytes) noexcept;
/// Makes names durable, where the file system can.
void sync_folder(const std::string& folder) noexcept;

/// Mends what killed runs left in `folder`: a commit that was under way is finished where it had been decided, and
/// undone otherwise; temporaries go. Waits up to `seconds` for runs that are committing there now. Files of others,
/// and of runs that live, stay; what cannot be mended waits for the next time. Once per process and folder.
void recover_once(const std::string& folder, double seconds);
/// The same, at every call.
void recover(const std::string& folder, double seconds);

}  // namespace allnorm::launch
