#include "launch/scale/sweep_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <span>
#include <string_view>

#include "launch/files/input_file.hpp"
#include "launch/files/json_lines.hpp"
#include "launch/files/leftovers.hpp"

namespace allnorm::launch::scale {

namespace {

std::string text_of(const std::vector<Json>& rows) {
  std::string text;
  for (const Json& row : rows) text += row.dump() + "\n";
  return text;
}

// How many bytes of it are lines that stay: a line that was cut, and what follows from results, is made again.
std::size_t end_of_results(std::string_view text, std::vector<Json>& events) {
  std::size_t end = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t stop = text.find('\n', at);
    if (stop == text.npos) break;
    Json event = Json::parse(text.substr(at, stop - at), nullptr, false);
    if (!event.is_object() || !event.contains("event") || !event["event"].is_string()) break;
    if (!events.empty() && !is_result(event)) break;
    events.push_back(std::move(event));
    end = at = stop + 1;
  }
  return end;
}

}  // namespace

bool is_result(const Json& row) { return is_event(row, "measurement") || is_event(row, "sum"); }

SweepFile::SweepFile(const Plan& plan, const Json& config) : path_(plan.resume.empty() ? plan.json : plan.resume) {
  std::size_t end = 0;
  if (!plan.resume.empty()) {
    constexpr std::uint64_t most_bytes = 1 << 30;
    const auto bytes = read_file(path_, most_bytes);
    end = end_of_results({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, events_);
    if (events_.empty() || !is_event(events_.front(), "config"))
      bad_file(path_, "is no log of scale, must begin with the event \"config\"");
    kept_ = events_.size() - 1;
  } else {
    events_.push_back(config);
  }
  if (path_.empty()) return;
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0 || ::ftruncate(descriptor_, static_cast<::off_t>(end)) != 0 ||
      ::lseek(descriptor_, 0, SEEK_END) < 0)
    bad_file(path_, "cannot be written: " + system_reason(errno));
  if (plan.resume.empty()) {
    events_.clear();
    add({config});
  }
}

SweepFile::~SweepFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void SweepFile::add(const std::vector<Json>& rows) {
  const std::string text = text_of(rows);
  if (descriptor_ >= 0)
    if (const int error = write_all(descriptor_, std::as_bytes(std::span(text))); error != 0)
      bad_file(path_, "cannot be written: " + system_reason(error));
  events_.insert(events_.end(), rows.begin(), rows.end());
}

}  // namespace allnorm::launch::scale
