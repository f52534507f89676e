// A progress bar on a terminal.
#include "launch/train/progress.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>

namespace allnorm::launch::train {
namespace {

constexpr double redraw_after = 0.2;  // seconds
constexpr int bar_width = 24;         // columns

std::string duration_text(double seconds) {
  const auto whole = static_cast<long long>(seconds + 0.5);
  std::array<char, 32> text{};
  if (whole >= 3600)
    std::snprintf(text.data(), text.size(), "%lld h %02lld min", whole / 3600, whole / 60 % 60);
  else
    std::snprintf(text.data(), text.size(), "%lld:%02lld", whole / 60, whole % 60);
  return text.data();
}

}  // namespace

Progress::Progress(bool wanted, std::int64_t total, std::int64_t done)
    : visible_(wanted && isatty(STDERR_FILENO) == 1), total_(total), done_(done), first_(done) {}

void Progress::tick() {
  ++done_;
  if (!visible_) return;
  const auto now = Clock::now();
  if (std::chrono::duration<double>(now - drawn_).count() < redraw_after && done_ < total_) return;
  drawn_ = now;
  draw(std::chrono::duration<double>(now - start_).count());
}

void Progress::draw(double seconds) {
  const double share = static_cast<double>(done_) / static_cast<double>(std::max<std::int64_t>(total_, 1));
  const double rate = static_cast<double>(done_ - first_) / std::max(seconds, 1e-9);
  const int filled = static_cast<int>(share * bar_width);
  const std::string bar = std::string(static_cast<std::size_t>(filled), '#') +
                          std::string(static_cast<std::size_t>(bar_width - filled), '.');
  std::fprintf(stderr, "\r\033[K[%s] %3.0f %%  %.0f updates/s, %s left  %s", bar.c_str(), 100 * share, rate,
               duration_text(static_cast<double>(total_ - done_) / std::max(rate, 1e-9)).c_str(), what_.c_str());
  std::fflush(stderr);
  on_screen_ = true;
}

void Progress::clear() {
  if (!on_screen_) return;
  std::fprintf(stderr, "\r\033[K");
  std::fflush(stderr);
  on_screen_ = false;
}

}  // namespace allnorm::launch::train
