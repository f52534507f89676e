// Signs of life of a long run, on stderr or on the terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace allnorm::launch {

/// One line that is rewritten a few times a second, or a line as often as there is something to say.
enum class ProgressKind : std::uint8_t { bar, lines, none };
/// "auto": a bar where stderr is a terminal, else lines; "bar": on the terminal of the process too, where stderr is
/// none; "lines"; "none". Throws invalid_argument for any other word.
ProgressKind progress_kind(const std::string& word);

/// Says what runs, how far, how fast, how long still.
class Progress {
 public:
  /// `total` and `done`: steps of everything, and those that were made before (by the run that is resumed); `unit`:
  /// what steps are called; `apart`: seconds from line to line at least.
  Progress(ProgressKind kind, std::int64_t total, std::int64_t done, std::string_view unit, double apart = 1);
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void describe(std::string what) { what_ = std::move(what); }
  const std::string& what() const noexcept { return what_; }
  void tick();
  /// With lines: what was described, and `outcome`; unless the last line is too young, and then `always`.
  void say(const std::string& outcome, bool always);
  /// Removes the bar, before something else is printed.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  struct Close {
    void operator()(std::FILE* file) const noexcept { std::fclose(file); }
  };
  std::string rest() const;  // "812 UNIT/s, 0:31 left"
  void draw();

  ProgressKind kind_;
  std::unique_ptr<std::FILE, Close> terminal_;
  std::FILE* out_;
  std::int64_t total_, done_, first_;
  std::string what_, unit_;
  double apart_;
  Clock::time_point start_ = Clock::now(), drawn_{};
  bool on_screen_ = false;
};

}  // namespace allnorm::launch
