#include "launch/watch/trace.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include <nlohmann/json.hpp>

#include "launch/files/input_file.hpp"
#include "launch/terminal.hpp"

namespace allnorm::launch {

namespace {

constexpr double micro = 1e6;

}  // namespace

Trace::Trace(std::string path, int rank) : path_(std::move(path)), rank_(rank) {
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) bad_file(path_, "cannot be written: " + system_reason(errno));
  write({{"ph", "M"}, {"name", "process_name"}, {"args", {{"name", "rank " + std::to_string(rank)}}}});
}

Trace::~Trace() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void Trace::begin(std::string_view category, const std::string& name, double time, const nlohmann::json& arguments) {
  write({{"ph", "B"}, {"cat", category}, {"name", name}, {"ts", time * micro}, {"args", arguments}});
}

void Trace::end(double time, const nlohmann::json& arguments) {
  write({{"ph", "E"}, {"ts", time * micro}, {"args", arguments}});
}

void Trace::begin_apart(std::string_view category, std::uint64_t number, const std::string& name, double time,
                        const nlohmann::json& arguments) {
  write_apart('b', category, number, name, time, arguments);
}

void Trace::end_apart(std::string_view category, std::uint64_t number, const std::string& name, double time,
                      const nlohmann::json& arguments) {
  write_apart('e', category, number, name, time, arguments);
}

// Asynchronous events, with an id of this process alone: the files of several ranks may be open in one view.
void Trace::write_apart(char phase, std::string_view category, std::uint64_t number, const std::string& name,
                        double time, const nlohmann::json& arguments) {
  write({{"ph", std::string(1, phase)},
         {"cat", category},
         {"id2", {{"local", std::to_string(number)}}},
         {"name", name},
         {"ts", time * micro},
         {"args", arguments}});
}

// One call of the system, as a rule, for an event and the end of the array, which the next event overwrites.
void Trace::write(const nlohmann::json& event) {
  if (descriptor_ < 0) return;
  nlohmann::json whole = event;
  whole["pid"] = rank_;
  whole["tid"] = rank_;
  const std::string own = whole.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const std::string text = (end_ == 0 ? "[\n" : ",\n") + own + "\n]\n";
  const auto size = static_cast<ssize_t>(text.size());
  ssize_t done = 0, part = 1;
  while (done < size && part > 0) {  // why only a part is written, the next try says
    part = ::pwrite(descriptor_, text.data() + done, static_cast<std::size_t>(size - done), end_ + done);
    done += std::max<ssize_t>(part, 0);
  }
  if (done == size) {
    end_ += size - 3;  // "\n]\n"
    return;
  }
  warn(path_ + ": the trace ends: cannot be written: " + system_reason(errno));
  const std::string_view bracket = "\n]\n";
  if (::ftruncate(descriptor_, end_) == 0 && end_ > 0)
    (void)!::pwrite(descriptor_, bracket.data(), bracket.size(), end_);
  ::close(std::exchange(descriptor_, -1));
}

}  // namespace allnorm::launch
