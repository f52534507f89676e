#include "processes.hpp"

#include <sys/inotify.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string_view>
#include <thread>

#include "places.hpp"

namespace allnorm::test {

namespace fs = std::filesystem;

namespace {

std::string folder_of(pid_t process) { return "/proc/" + std::to_string(process); }

// The numbers in a folder of /proc.
std::vector<pid_t> numbers_in(const std::string& folder) {
  std::vector<pid_t> numbers;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    pid_t number = 0;
    const auto [rest, bad] = std::from_chars(name.data(), name.data() + name.size(), number);
    if (bad == std::errc{} && rest == name.data() + name.size()) numbers.push_back(number);
  }
  return numbers;
}

}  // namespace

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool becomes(const std::function<bool()>& holds) {
  for (const auto start = Clock::now(); seconds_since(start) < 60;) {
    if (holds()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

std::vector<pid_t> processes_in(const std::string& directory) {
  std::vector<pid_t> found;
  for (const pid_t process : numbers_in("/proc")) {
    std::error_code error;
    if (fs::read_symlink(folder_of(process) + "/cwd", error).string() == directory) found.push_back(process);
  }
  return found;
}

std::optional<pid_t> process_of_rank(const std::string& directory, int rank) {
  using namespace std::string_literals;
  const std::string variable = "\0OMPI_COMM_WORLD_RANK="s + std::to_string(rank) + "\0"s;
  for (const pid_t process : processes_in(directory)) {
    const std::string name = content_of(folder_of(process) + "/comm");
    const bool runs_it = name == "allnorm\n" || name == "allnorm-train\n";
    if (runs_it && ("\0"s + content_of(folder_of(process) + "/environ")).find(variable) != std::string::npos)
      return process;
  }
  return std::nullopt;
}

std::optional<pid_t> thread_named(pid_t process, const std::string& name) {
  for (const pid_t thread : numbers_in(folder_of(process) + "/task"))
    if (content_of(folder_of(process) + "/task/" + std::to_string(thread) + "/comm") == name + "\n") return thread;
  return std::nullopt;
}

Openings::Openings(const std::string& directory) : descriptor_(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC)) {
  ::inotify_add_watch(descriptor_, directory.c_str(), IN_OPEN);
}
Openings::~Openings() { ::close(descriptor_); }

bool Openings::has(const std::string& name) {
  alignas(inotify_event) std::array<char, 1 << 14> events;
  for (ssize_t size = 0; (size = ::read(descriptor_, events.data(), events.size())) > 0;)
    for (const char* at = events.data(); at < events.data() + size;) {
      const auto* const event = reinterpret_cast<const inotify_event*>(at);
      if (event->len > 0) names_.insert(event->name);
      at += sizeof *event + event->len;
    }
  return names_.contains(name);
}

HeldThread::HeldThread(pid_t thread) : thread_(thread) { held_ = seize(0); }

HeldThread::HeldThread(pid_t thread, const std::vector<long>& calls) : thread_(thread) {
  if (!seize(PTRACE_O_TRACESYSGOOD)) return;
  for (long signal = 0;;) {
    int status = 0;
    if (::ptrace(PTRACE_SYSCALL, thread_, nullptr, signal) != 0) return;
    if (::waitpid(thread_, &status, __WALL) != thread_ || !WIFSTOPPED(status)) return;
    signal = 0;
    if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
      __ptrace_syscall_info info{};
      if (::ptrace(PTRACE_GET_SYSCALL_INFO, thread_, sizeof info, &info) <= 0) break;
      if (info.op == PTRACE_SYSCALL_INFO_ENTRY &&
          std::find(calls.begin(), calls.end(), static_cast<long>(info.entry.nr)) != calls.end()) {
        held_ = true;
        return;
      }
    } else if (status >> 16 == 0) {
      signal = WSTOPSIG(status);  // its own
    }
  }
  ::ptrace(PTRACE_DETACH, thread_, nullptr, nullptr);
}

// Leaves it stopped.
bool HeldThread::seize(unsigned long options) {
  if (::ptrace(PTRACE_SEIZE, thread_, nullptr, options) != 0) return false;
  int status = 0;
  return ::ptrace(PTRACE_INTERRUPT, thread_, nullptr, nullptr) == 0 && ::waitpid(thread_, &status, __WALL) == thread_ &&
         WIFSTOPPED(status);
}

HeldThread::~HeldThread() {
  if (held_) ::ptrace(PTRACE_DETACH, thread_, nullptr, nullptr);
}

bool HeldThread::gone(double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  do {
    int status = 0;
    if (::waitpid(thread_, &status, __WALL | WNOHANG) == thread_ && !WIFSTOPPED(status)) {
      held_ = false;
      return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace allnorm::test
