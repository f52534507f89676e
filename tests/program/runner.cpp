// Runs the program as a child process, in a directory of its own.
#include "runner.hpp"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

#include "launch/files/npy_convert.hpp"

namespace allnorm::test {

namespace fs = std::filesystem;

namespace {

void split_words(std::string_view text, std::vector<std::string>& words) {
  std::istringstream stream{std::string(text)};
  for (std::string word; stream >> word;) words.push_back(word);
}

}  // namespace

bool Outcome::one_line() const {
  return err.starts_with("allnorm: ") && std::count(err.begin(), err.end(), '\n') == 1 && err.back() == '\n';
}

Workplace::Workplace() {
  std::string name = (fs::temp_directory_path() / "allnorm-program-XXXXXX").string();
  if (!::mkdtemp(name.data())) throw std::runtime_error("no temporary directory");
  directory_ = name;
}

Workplace::~Workplace() {
  std::error_code ignored;
  fs::remove_all(directory_, ignored);
}

void Workplace::make(std::string_view name, const Shape& shape, launch::NpyType type) const {
  std::vector<double> values(static_cast<std::size_t>(shape.elements()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto x = static_cast<double>(i);
    values[i] = 0.25 * x - 1 + std::sin(3 * x);
  }
  launch::NpyArray array = launch::from_doubles(values, shape);
  if (type == launch::NpyType::f32 || type == launch::NpyType::f16) {
    array.data = launch::to_dtype(array, type == launch::NpyType::f32 ? DType::f32 : DType::f16);
    array.type = type;
  } else if (type == launch::NpyType::i64) {
    std::vector<std::int64_t> integers(values.size());
    for (std::size_t i = 0; i < integers.size(); ++i) integers[i] = static_cast<std::int64_t>(i * i % 11);
    array = launch::from_int64(integers, shape);
  }
  write(name, array);
}

void Workplace::write(std::string_view name, const launch::NpyArray& array) const {
  launch::write_npy(path(name), array);
}

void Workplace::write_bytes(std::string_view name, std::string_view bytes) const {
  std::ofstream(path(name), std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

launch::NpyArray Workplace::read(std::string_view name) const { return launch::read_npy(path(name)); }
std::vector<double> Workplace::values(std::string_view name) const { return launch::to_doubles(read(name)); }
std::string Workplace::bytes(std::string_view name) const { return content_of(path(name)); }
bool Workplace::exists(std::string_view name) const { return fs::exists(path(name)); }

std::vector<std::string> Workplace::list(std::string_view name) const {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path(name))) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

Outcome Workplace::run(std::string_view words, std::string_view before) const { return wait(start(words, before)); }

Outcome Workplace::run_with(std::span<const std::string_view> environment, std::string_view words) const {
  std::vector<std::string> all{program()};
  split_words(words, all);
  return wait(start(all, {environment.begin(), environment.end()}));
}

Outcome Workplace::run_other(std::string_view words) const {
  std::vector<std::string> all;
  split_words(words, all);
  return wait(start(all, {}));
}

pid_t Workplace::start(std::string_view words, std::string_view before) const {
  std::vector<std::string> all;
  split_words(before, all);
  all.push_back(program());
  split_words(words, all);
  return start(all, {});
}

pid_t Workplace::start_with(const std::vector<std::string>& environment, std::string_view words,
                            std::string_view name) const {
  std::vector<std::string> all{program()};
  split_words(words, all);
  return start(all, environment, name);
}

pid_t Workplace::start(const std::vector<std::string>& words, const std::vector<std::string>& environment,
                       std::string_view name) const {
  const std::string out = ".stdout" + std::string(name), err = ".stderr" + std::string(name);
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    for (const std::string& variable : environment) ::putenv(const_cast<char*>(variable.c_str()));
    // What a launcher starts, or what is told that one did, may use MPI, which keeps memory to its end.
    if (words.front() != program() || !environment.empty()) ::setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
    if (::chdir(directory_.c_str()) != 0) ::_exit(127);
    ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
    ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
    ::execvp(arguments[0], arguments.data());
    ::_exit(127);
  }
  return child;
}

Outcome Workplace::wait(pid_t child, std::string_view name) const {
  const std::string out = ".stdout" + std::string(name), err = ".stderr" + std::string(name);
  int status = 0;
  ::waitpid(child, &status, 0);
  Outcome outcome{WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), content_of(path(out)),
                  content_of(path(err))};
  fs::remove(path(out));
  fs::remove(path(err));
  return outcome;
}

}  // namespace allnorm::test
