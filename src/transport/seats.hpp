// Where the ranks run that are processes, as each tells the others.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "src/transport/pause.hpp"

namespace allnorm {

using HostName = std::array<char, 64>;  // cut to fit, zeros behind it

inline HostName host_name(std::string_view text) {
  HostName name{};
  std::copy_n(text.begin(), std::min(text.size(), name.size() - 1), name.begin());
  return name;
}

struct Seat {
  HostName host{};
  cpu_set_t cores{};
};

/// Whether the ranks on the host of `rank` are more than the cores that they have together: a launcher may have bound
/// each to its own.
inline bool is_crowded(const std::vector<Seat>& seats, std::size_t rank) {
  int ranks = 0;
  cpu_set_t cores;
  CPU_ZERO(&cores);
  for (const Seat& seat : seats) {
    if (seat.host != seats[rank].host) continue;
    ++ranks;
    CPU_OR(&cores, &cores, &seat.cores);
  }
  return are_crowded(ranks, cores, cpu_quota());
}

/// [rank] -> the first rank of its host.
inline std::vector<int> nodes_of(const std::vector<Seat>& seats) {
  std::vector<int> nodes;
  for (const Seat& seat : seats)
    nodes.push_back(static_cast<int>(
        std::find_if(seats.begin(), seats.end(), [&](const Seat& s) { return s.host == seat.host; }) - seats.begin()));
  return nodes;
}

/// How errors call the ranks, [rank], which have these numbers: by their host too where these are several.
inline std::vector<std::string> names_of(const std::vector<Seat>& seats, const std::vector<int>& numbers) {
  const bool several = std::any_of(seats.begin(), seats.end(), [&](const Seat& s) { return s.host != seats[0].host; });
  std::vector<std::string> names;
  for (std::size_t rank = 0; rank < seats.size(); ++rank)
    names.push_back("rank " + std::to_string(numbers[rank]) +
                    (several ? " (" + std::string(seats[rank].host.data()) + ")" : ""));
  return names;
}

}  // namespace allnorm
