// "Did you mean": the known name that a slip of the finger is nearest to.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

namespace allnorm {

/// Letters to add, drop, change or swap with their neighbour (each pair once) until `a` is `b`.
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), now(b.size() + 1);  // rows of the table
  std::iota(last.begin(), last.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    now[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      now[j] = std::min({last[j] + 1, now[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) now[j] = std::min(now[j], before[j - 2] + 1);
    }
    before.swap(last);
    last.swap(now);
  }
  return last[b.size()];
}

/// "; did you mean NAME?" for the known name that is near enough: at most a third of its letters differ, or it begins
/// as `given`. Otherwise nothing. `name_of` makes a string_view of an element of `known`.
template <class Known, class NameOf>
std::string did_you_mean(std::string_view given, const Known& known, NameOf name_of) {
  constexpr std::size_t longest = 64;  // more is no slip
  std::string_view best;
  std::size_t least = longest;
  for (const auto& element : known) {
    const std::string_view name = name_of(element);
    if (given.empty() || given.size() > longest) break;
    const bool begins = given.size() >= 3 && name.starts_with(given);
    const std::size_t distance = begins ? 1 : edit_distance(given, name);
    if (distance < least && (begins || 3 * distance <= std::max(given.size(), name.size()))) {
      least = distance;
      best = name;
    }
  }
  return best.empty() ? "" : "; did you mean " + std::string(best) + "?";
}

}  // namespace allnorm
