// Signs of life of a long run.
#include "launch/progress.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>

#include "allnorm/error.hpp"
#include "launch/terminal.hpp"

namespace allnorm::launch {
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

double seconds_between(std::chrono::steady_clock::time_point from, std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

ProgressKind progress_kind(const std::string& word) {
  if (word == "auto") return isatty(STDERR_FILENO) == 1 ? ProgressKind::bar : ProgressKind::lines;
  if (word == "bar") return ProgressKind::bar;
  if (word == "lines") return ProgressKind::lines;
  expect(word == "none", Code::invalid_argument,
         [&] { return "--progress is '" + word + "', must be auto, bar, lines or none"; });
  return ProgressKind::none;
}

Progress::Progress(ProgressKind kind, std::int64_t total, std::int64_t done, std::string_view unit, double apart)
    : kind_(kind), out_(stderr), total_(total), done_(done), first_(done), unit_(unit), apart_(apart) {
  if (kind_ != ProgressKind::bar || isatty(STDERR_FILENO) == 1) return;
  terminal_.reset(std::fopen("/dev/tty", "w"));
  out_ = terminal_.get();
  if (out_ == nullptr) kind_ = ProgressKind::lines;  // there is no terminal
}

std::string Progress::rest() const {
  const double rate = static_cast<double>(done_ - first_) / std::max(seconds_between(start_, Clock::now()), 1e-9);
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.0f ", rate);
  return (rate < 1 ? "" : text.data() + unit_ + "/s, ") +
         duration_text(static_cast<double>(total_ - done_) / std::max(rate, 1e-9)) + " left";
}

void Progress::tick() {
  ++done_;
  if (kind_ != ProgressKind::bar) return;
  const auto now = Clock::now();
  if (seconds_between(drawn_, now) < redraw_after && done_ < total_) return;
  drawn_ = now;
  draw();
}

void Progress::say(const std::string& outcome, bool always) {
  if (kind_ != ProgressKind::lines) return;
  const auto now = Clock::now();
  if (seconds_between(drawn_, now) < apart_ && !always) return;
  drawn_ = now;
  print_line(what_ + ": " + outcome + "; " + rest());
}

void Progress::draw() {
  const double share = static_cast<double>(done_) / static_cast<double>(std::max<std::int64_t>(total_, 1));
  const int filled = static_cast<int>(share * bar_width);
  const std::string bar = std::string(static_cast<std::size_t>(filled), '#') +
                          std::string(static_cast<std::size_t>(bar_width - filled), '.');
  std::fprintf(out_, "\r\033[K[%s] %3.0f %%  %s  %s", bar.c_str(), 100 * share, rest().c_str(), what_.c_str());
  std::fflush(out_);
  on_screen_ = true;
}

void Progress::clear() {
  if (!on_screen_) return;
  std::fprintf(out_, "\r\033[K");
  std::fflush(out_);
  on_screen_ = false;
}

}  // namespace allnorm::launch
