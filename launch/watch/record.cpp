#include "launch/watch/record.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <functional>
#include <optional>
#include <string_view>
#include <system_error>

#include <nlohmann/json.hpp>

#include "launch/files/input_file.hpp"
#include "launch/files/json_number.hpp"
#include "launch/ranks.hpp"
#include "src/attributes.hpp"

namespace allnorm::launch {

namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr std::uint64_t most_bytes = 64 << 20;
constexpr int most_ranks = 1 << 20, most_code = 255;

void read_last_call(const Json& json, RankRecord& record) {
  const Json& calls = json.at("calls");
  if (calls.empty()) return;
  const Json& last = calls.back();
  record.where = last.at("layer").get<std::string>() + ", call " + std::to_string(whole(last.at("call"))) + ", " +
                 last.at("direction").get<std::string>();
  record.under_way = last.at("ended").is_null();
  record.exchanging = record.under_way && last.contains("exchange") && last.at("exchange").at(1).is_null();
  record.since = record.written - (record.under_way ? last.at("began") : last.at("ended")).get<double>();
}

std::string seconds_text(double seconds) {
  return attributes::text_of(std::max(0.0, std::round(seconds * 10) / 10)) + " s";
}

// "rank 0", "ranks 0 and 2", "ranks 0 to 2 and 5".
std::string ranks_text(const std::vector<int>& ranks) {
  std::vector<std::string> parts;
  for (std::size_t i = 0; i < ranks.size();) {
    std::size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    const bool range = end - i > 2;
    if (!range) end = i + 1;
    parts.push_back(std::to_string(ranks[i]) + (range ? " to " + std::to_string(ranks[end - 1]) : ""));
    i = end;
  }
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < parts.size(); ++i)
    text += (i == 0 ? "" : i + 1 == parts.size() ? " and " : ", ") + parts[i];
  return text;
}

std::string place_of(const RankRecord& record) {
  if (record.where.empty()) return "made no call";
  if (record.exchanging) return "waited for other ranks at " + record.where;
  return record.under_way ? "was in its own work at " + record.where : "had done " + record.where;
}

class Diagnosis {
 public:
  explicit Diagnosis(std::vector<RankRecord> records) : records_(std::move(records)) {
    // What was written before another rank began is left of an earlier job.
    double began = 0;
    for (const RankRecord& record : records_) began = std::max(began, record.started);
    std::erase_if(records_, [&](const RankRecord& record) {
      if (record.written >= began) return false;
      stale_.push_back(record.rank);
      return true;
    });
    ranks_ = records_.front().ranks;
    for (int rank = 0; rank < ranks_; ++rank)
      if (find(rank) == nullptr) silent_.push_back(rank);
  }

  std::string text() const {
    std::string text = happened() + ". " + places() + " " + advice();
    if (!stale_.empty())
      text += " What " + ranks_text(stale_) + " left in the folder is older than the job, and was not used.";
    return text;
  }

 private:
  const RankRecord* find(int rank) const {
    const auto at = std::find_if(records_.begin(), records_.end(), [&](const auto& r) { return r.rank == rank; });
    return at == records_.end() ? nullptr : &*at;
  }
  std::vector<int> where(const std::function<bool(const RankRecord&)>& holds) const {
    std::vector<int> ranks;
    for (const RankRecord& record : records_)
      if (holds(record)) ranks.push_back(record.rank);
    return ranks;
  }
  std::vector<int> failed(const std::string& kind) const {
    return where([&](const RankRecord& r) { return r.how == how_failed && r.kind == kind; });
  }

  // The first of what can be a cause, as the exit code is chosen too.
  const RankRecord* cause() const {
    for (const char* kind : {kind_own, kind_mismatch, kind_late, kind_peer})
      if (const auto ranks = failed(kind); !ranks.empty()) return find(ranks.front());
    return nullptr;
  }
  std::vector<int> missing() const {
    std::vector<int> all;
    for (const RankRecord& record : records_)
      for (const int rank : record.missing)
        if (std::find(all.begin(), all.end(), rank) == all.end()) all.push_back(rank);
    std::sort(all.begin(), all.end());
    return all;
  }

  std::string happened() const {
    const std::string of = "Of " + std::to_string(ranks_) + (ranks_ == 1 ? " rank, " : " ranks, ");
    if (const RankRecord* first = cause()) {
      const std::vector<int> alike =
          where([&](const RankRecord& r) { return r.kind == first->kind && r.line == first->line; });
      if (first->kind == kind_own) return of + ranks_text(alike) + " failed: " + first->line;
      if (first->kind == kind_mismatch)
        return of + ranks_text(failed(kind_mismatch)) + " found that they disagree: " + first->line;
      if (first->kind == kind_late) {
        const auto late = missing();
        return of +
               (late.empty() ? ranks_text(failed(kind_late)) + " waited too long: "
                             : ranks_text(late) + (late.size() == 1 ? " was late: " : " were late: ")) +
               first->line;
      }
      return of + ranks_text(failed(kind_peer)) + " ended because of another one: " + first->line;
    }
    const auto finished = where([](const RankRecord& r) { return r.how == how_finished; });
    if (finished.size() == static_cast<std::size_t>(ranks_)) return of + "all finished";
    if (finished.size() == records_.size()) return of + ranks_text(finished) + " finished";
    const auto ended = where([](const RankRecord& r) { return r.how != how_finished; });
    return of + ranks_text(ended) + (ended.size() == 1 ? " was ended" : " were ended") + " from outside (" +
           find(ended.front())->how + ")";
  }

  // Ranks that were at the same place are told together.
  std::string places() const {
    struct Place {
      std::string text;
      std::vector<int> ranks{};
      double least = 0, most = 0;  // seconds there
    };
    std::vector<Place> all;
    for (int rank = 0; rank < ranks_; ++rank) {
      const RankRecord* const record = find(rank);
      const std::string text = record == nullptr ? "left no record" : place_of(*record);
      const double since = record != nullptr && record->under_way ? record->since : 0;
      auto at = std::find_if(all.begin(), all.end(), [&](const Place& place) { return place.text == text; });
      if (at == all.end()) at = all.insert(at, {text, {}, since, since});
      at->ranks.push_back(rank);
      at->least = std::min(at->least, since);
      at->most = std::max(at->most, since);
    }
    std::string text;
    for (const Place& place : all) {
      text += (text.empty() ? "" : "; ") + ranks_text(place.ranks) + " " + place.text;
      const std::string most = seconds_text(place.most);
      if (place.most > 0) text += (seconds_text(place.least) == most ? ", for " : ", for up to ") + most;
    }
    text[0] = 'R';
    return text + ".";
  }

  // "rank 2 (pid 7 on node1)".
  std::string process_of(int rank) const {
    const RankRecord* record = find(rank);
    return "rank " + std::to_string(rank) +
           (record == nullptr ? "" : " (pid " + std::to_string(record->pid) + " on " + record->host + ")");
  }

  std::string advice() const {
    const RankRecord* first = cause();
    if (first == nullptr) {
      if (!silent_.empty())
        return "Look at " + process_of(silent_.front()) +
               ": without a record it was killed (by the system for want of memory?), hangs, or has not ended.";
      if (where([](const RankRecord& r) { return r.how != how_finished; }).empty()) return "Nothing is to be done.";
      return "Look who ended the job: a user, a scheduler whose time was over, or the launcher.";
    }
    if (first->kind == kind_mismatch)
      return "Start all ranks with the same command, files and version; what differs is named above.";
    if (first->kind == kind_own) {
      if (first->code == exit_usage) return "Correct the command line of " + process_of(first->rank) + ".";
      if (first->code == exit_file) return "Look at the file that " + process_of(first->rank) + " names.";
      if (first->code == exit_unavailable) return "'allnorm info' says what this build and machine have.";
      return "Begin with " + process_of(first->rank) + ": the others ended because it did.";
    }
    const auto late = missing();
    const auto guilty = std::find_if(late.begin(), late.end(), [&](int rank) { return find(rank) == nullptr; });
    if (guilty != late.end() || (late.empty() && !silent_.empty()))
      return "Look at " + process_of(guilty != late.end() ? *guilty : silent_.front()) +
             " first: it was killed (by the system for want of memory?), was stopped, or hangs. If it is only slow, "
             "give it time with --timeout.";
    if (!late.empty())
      return "Look at " + process_of(late.front()) +
             " first: it was stopped, or its own work took longer than --timeout allows.";
    return "Begin with the rank that is named above.";
  }

  std::vector<RankRecord> records_;
  std::vector<int> silent_, stale_;
  int ranks_ = 1;
};

}  // namespace

RankRecord read_record(const std::string& path) {
  const std::vector<std::byte> bytes = read_file(path, most_bytes);
  RankRecord record;
  try {
    const auto* const text = reinterpret_cast<const char*>(bytes.data());
    const Json json = Json::parse(text, text + bytes.size());
    if (json.at("event") != "record") bad_file(path, "has no event \"record\", must be a record that a rank has left");
    if (const auto format = whole(json.at("format")); format != record_format)
      bad_file(path, "has format " + std::to_string(format) + ", must be " + std::to_string(record_format));
    const std::int64_t rank = whole(json.at("rank")), ranks = whole(json.at("ranks"));
    if (ranks < 1 || ranks > most_ranks || rank < 0 || rank >= ranks)
      bad_file(path, "is of rank " + std::to_string(rank) + " of " + std::to_string(ranks) +
                         ", must be of one from 0 below their number, at most " + std::to_string(most_ranks));
    record.rank = static_cast<int>(rank);
    record.ranks = static_cast<int>(ranks);
    json.at("host").get_to(record.host);
    record.pid = whole(json.at("pid"));
    json.at("started").get_to(record.started);
    json.at("written").get_to(record.written);
    if (!(record.started <= record.written)) bad_file(path, "was written before its rank began, must be after");
    const Json& end = json.at("end");
    end.at("how").get_to(record.how);
    end.at("kind").get_to(record.kind);
    end.at("line").get_to(record.line);
    const std::int64_t code = whole(end.at("code"));
    if (code < 0 || code > most_code)
      bad_file(path, "has the exit code " + std::to_string(code) + ", must be 0 to " + std::to_string(most_code));
    record.code = static_cast<int>(code);
    constexpr std::array<std::string_view, 4> kinds{kind_own, kind_mismatch, kind_late, kind_peer};
    if (record.how == how_failed && std::find(kinds.begin(), kinds.end(), record.kind) == kinds.end())
      bad_file(path, "has a failure of kind " + printable(record.kind) + ", must be own, mismatch, late or peer");
    read_last_call(json, record);
    if (const auto late = json.find("late"); late != json.end())
      for (const Json& other : late->at("ranks")) {
        if (other.at("is") != "missing") continue;
        const std::int64_t missing = whole(other.at("rank"));
        if (missing < 0 || missing >= ranks)
          bad_file(path, "has a missing rank " + std::to_string(missing) + ", must be one of " + std::to_string(ranks));
        record.missing.push_back(static_cast<int>(missing));
      }
  } catch (const Json::parse_error& error) {
    bad_file(path, "is no JSON from byte " + std::to_string(error.byte) + " on, must be a record that a rank has left");
  } catch (const Json::exception& error) {
    bad_file(path, "is no record that a rank has left: " + printable(error.what()));
  }
  return record;
}

std::vector<RankRecord> read_records(const std::string& folder) {
  std::vector<RankRecord> records;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (name.starts_with("record.r") && name.ends_with(".json")) records.push_back(read_record(at->path().string()));
  }
  if (error) bad_file(folder, "cannot be read: " + error.message());
  if (records.empty()) bad_file(folder, "has no record.r<rank>.json, must be the folder of a job's --record");
  std::sort(records.begin(), records.end(), [](const auto& a, const auto& b) { return a.rank < b.rank; });
  return records;
}

std::string diagnosis_of(std::vector<RankRecord> records) { return Diagnosis(std::move(records)).text(); }

}  // namespace allnorm::launch
