#include "launch/machine.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <system_error>
#include <thread>

namespace allnorm::launch {

namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// A number of bytes in a file of the kernel; none for "max", and where there is no such file.
std::optional<std::uint64_t> bytes_in(const std::string& path) {
  std::istringstream text(first_line(path));
  std::uint64_t bytes = 0;
  if (!(text >> bytes)) return std::nullopt;
  return bytes;
}

// A line "NAME:   123 kB" of /proc/meminfo.
std::uint64_t kilobytes_in(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  for (std::string word; file >> word;)
    if (word == name) {
      std::uint64_t kilobytes = 0;
      file >> kilobytes;
      return kilobytes;
    }
  return 0;
}

}  // namespace

std::vector<int> usable_cpus() {
  std::vector<int> cpus;
  for (int most = CPU_SETSIZE; most <= 1 << 20 && cpus.empty(); most *= 2) {  // until the kernel's mask fits
    cpu_set_t* const set = CPU_ALLOC(static_cast<std::size_t>(most));
    const std::size_t size = CPU_ALLOC_SIZE(static_cast<std::size_t>(most));
    if (::sched_getaffinity(0, size, set) == 0)
      for (int cpu = 0; cpu < most; ++cpu)
        if (CPU_ISSET_S(static_cast<std::size_t>(cpu), size, set)) cpus.push_back(cpu);
    CPU_FREE(set);
  }
  return cpus;
}

std::string ranges(const std::vector<int>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(numbers[i]);
    if (last > i) text += "-" + std::to_string(numbers[last]);
    i = last + 1;
  }
  return text;
}

Room memory_room() {
  constexpr std::uint64_t kilobyte = 1024;
  Room room{kilobytes_in("/proc/meminfo", "MemAvailable:") * kilobyte, "free on this machine"};
  const auto within = [&room](std::uint64_t limit, std::uint64_t used, const char* by) {
    const std::uint64_t left = limit - std::min(limit, used);
    if (left < room.bytes) room = {left, by};
  };
  constexpr std::array<std::array<const char*, 2>, 2> cgroups{
      {{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
       {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"}}};
  for (const auto& [limit, used] : cgroups)
    if (const auto bytes = bytes_in(limit)) within(*bytes, bytes_in(used).value_or(0), "left of the container's limit");
  return room;
}

std::string on_path(const std::string& program) {
  const char* const path = std::getenv("PATH");
  std::istringstream folders(path == nullptr ? "" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    std::error_code error;
    const std::string file = (folder.empty() ? "." : folder) + "/" + program;
    if (std::filesystem::is_regular_file(file, error) && ::access(file.c_str(), X_OK) == 0) return file;
  }
  return {};
}

Ended run_program(const std::vector<std::string>& words, double seconds) {
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  Ended ended;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ended;
  const ::pid_t child = ::fork();
  if (child == 0) {
    ::setpgid(0, 0);                     // with all that it starts it can be ended
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);  // where this program is killed
    ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
    ::dup2(ends[1], STDOUT_FILENO);
    ::dup2(ends[1], STDERR_FILENO);
    ::execvp(arguments[0], arguments.data());
    ::_exit(127);
  }
  ::close(ends[1]);
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  while (child > 0 && !ended.in_time) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    ::pollfd waiting{ends[0], POLLIN, 0};
    if (left <= 0 || ::poll(&waiting, 1, static_cast<int>(std::min<long long>(left, 1000))) < 0) break;
    if (waiting.revents == 0) continue;
    std::array<char, 4096> bytes;
    const ::ssize_t count = ::read(ends[0], bytes.data(), bytes.size());
    if (count > 0)
      ended.text.append(bytes.data(), static_cast<std::size_t>(count));
    else
      ended.in_time = true;
  }
  ::close(ends[0]);
  if (child <= 0) return ended;
  // One that has closed its output may still run on.
  int status = 0;
  ::pid_t gone = 0;
  while (ended.in_time && (gone = ::waitpid(child, &status, WNOHANG)) == 0)
    if (Clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    else
      ended.in_time = false;
  if (!ended.in_time) ::kill(-child, SIGKILL);
  if (gone == 0) ::waitpid(child, &status, 0);
  ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ended;
}

}  // namespace allnorm::launch
