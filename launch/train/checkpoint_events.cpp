// What a checkpoint says besides its tensors, checked field by field.
#include "launch/train/checkpoint_events.hpp"

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "launch/files/input_file.hpp"

namespace allnorm::launch::train {
namespace {

constexpr int deepest = 16;  // levels within a text; ours have 8, and functions of the JSON library call themselves

std::string shown(const Json& value) {
  constexpr std::size_t longest = 48;
  const std::string text = value.dump(-1, ' ', true);
  return text.size() <= longest ? text : text.substr(0, longest) + "...";
}

Json parse_text(const std::string& path, const std::string& field, const std::string& text) {
  const auto bounded = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > deepest)
      bad_file(path, field + " is nested deeper than " + std::to_string(deepest) + " levels, must be at most that");
    return true;
  };
  try {
    return Json::parse(text, bounded);
  } catch (const Json::exception&) {  // its text is not passed on: it quotes the file
    bad_file(path, field + " is not JSON, must be as train --checkpoint wrote it");
  }
}

/// Goes down to the first part in which two values differ: ".norms[1].attributes.eps". Null where one has no such part.
std::string descend(const Json*& found, const Json*& wanted) {
  std::string path;
  const auto enter = [&](const std::string& step, const Json* in_found, const Json* in_wanted) {
    path += step;
    found = in_found;
    wanted = in_wanted;
  };
  for (bool deeper = true; deeper && found != nullptr && wanted != nullptr;) {
    deeper = false;
    const Json &a = *found, &b = *wanted;
    if (a.is_array() && b.is_array() && a.size() == b.size()) {
      for (std::size_t i = 0; i < b.size() && !deeper; ++i)
        if ((deeper = a[i] != b[i])) enter("[" + std::to_string(i) + "]", &a[i], &b[i]);
    } else if (a.is_object() && b.is_object()) {
      const auto member = [](const Json& object, const std::string& name) {
        const auto at = object.find(name);
        return at == object.end() ? nullptr : &*at;
      };
      for (const Json* names : {&b, &a})
        for (auto at = names->begin(); at != names->end() && !deeper; ++at) {
          const Json *own = member(a, at.key()), *other = member(b, at.key());
          if ((deeper = own == nullptr || other == nullptr || *own != *other))
            enter("." + (other ? at.key() : printable(at.key())), own, other);
        }
    }
  }
  return path;
}

enum class Kind { text, percent, amount, measure };

bool fits(const Json& value, Kind kind) {
  switch (kind) {
    case Kind::text:
      return value.is_string();
    case Kind::percent:
      return value.is_number() && value >= 0 && value <= 100;
    case Kind::amount:
      return value.is_number() && value >= 0;
    case Kind::measure:
      break;
  }
  return value.is_number() || value.is_null();
}

std::string_view must_be(Kind kind) {
  switch (kind) {
    case Kind::text:
      return "text";
    case Kind::percent:
      return "a number from 0 to 100";
    case Kind::amount:
      return "a number of at least 0";
    case Kind::measure:
      break;
  }
  return "a number, or null where it was not finite";
}

bool is_statistics(const Json& event) {
  return event.is_object() && event.contains("event") && event["event"] == "statistics";
}

/// An object of the file and where it is: "events[3]".
class Place {
 public:
  Place(const std::string& path, std::string name, Json* value) : path_(path), name_(std::move(name)), value_(value) {
    if (value_ == nullptr || !value_->is_object()) bad("", value_, "an object");
  }

  bool has(std::string_view member) const { return value_->contains(member); }
  Json& operator[](std::string_view member) const { return (*value_)[member]; }

  void check(std::string_view member, Kind kind) const {
    Json* const found = find(member);
    if (found == nullptr || !fits(*found, kind)) bad(member, found, std::string(must_be(kind)));
    if (found->is_null()) *found = std::numeric_limits<double>::quiet_NaN();
  }
  void equals(std::string_view member, const Json& wanted) const {
    const Json *found = find(member), *must = &wanted;
    if (found != nullptr && *found == wanted) return;
    const std::string path = descend(found, must);
    bad(std::string(member) + path, found, must ? shown(*must) : "left out");
  }
  [[noreturn]] void bad(std::string_view member, const Json* found, const std::string& must) const {
    bad_file(path_, name_ + (member.empty() ? "" : "." + std::string(member)) + " is " +
                        (found ? shown(*found) : "missing") + ", must be " + must);
  }

 private:
  Json* find(std::string_view member) const {
    const auto found = value_->find(member);
    return found == value_->end() ? nullptr : &*found;
  }

  const std::string& path_;
  std::string name_;
  Json* value_;
};

/// The events of a file, one after another.
class Reader {
 public:
  Reader(const std::string& path, Json& list, const Settings& settings)
      : path_(path), list_(list), settings_(settings) {}

  void config(const Json& now) {
    const Place event = next("config");
    for (const std::string_view member : {"version", "commit", "transport"}) event.check(member, Kind::text);
    event.equals("command", "train");
    event.equals("settings", now.at("settings"));
    accept();
  }

  void epoch(const Job& job, std::int64_t epoch) {
    const Json run = about_run(settings_, job, epoch);
    const Place event = next("epoch", run);
    event.check("loss", Kind::measure);
    event.check("test_error", Kind::percent);
    if (event.has("test_error_own_statistics")) event.check("test_error_own_statistics", Kind::percent);
    for (const std::string_view member : {"seconds", "exchanges", "exchange_bytes"}) event.check(member, Kind::amount);
    accept();
    for (std::int64_t layer = 1; at_ < list_.size() && is_statistics(list_[at_]); ++layer) statistics(run, layer);
    if (epoch + 1 == settings_.epochs && job.seed + 1 == static_cast<std::uint64_t>(settings_.seeds)) {
      next("result", result_event(settings_, job, events_));
      accept();
    }
  }

  Events end() {
    if (at_ < list_.size())
      bad_file(path_, "events has " + std::to_string(list_.size()) + " events, must have " + std::to_string(at_) +
                          " at its position");
    return std::move(events_);
  }

 private:
  void statistics(const Json& run, std::int64_t layer) {
    const Place event = next("statistics", run);
    event.equals("layer", layer);
    for (const std::string_view member : {"mean_gap_mean", "mean_gap_max"}) event.check(member, Kind::measure);
    constexpr std::string_view of_renorm[] = {"r_mean", "r_max", "d_mean", "d_max", "clipped"};
    bool renorm = false;
    for (const std::string_view member : of_renorm) renorm = renorm || event.has(member);
    if (renorm)
      for (const std::string_view member : of_renorm) event.check(member, Kind::measure);
    if (event.has("past")) {
      Json& past = event["past"];
      if (!past.is_array()) event.bad("past", &past, "a list");
      for (std::size_t i = 0; i < past.size(); ++i) {
        const Place lag(path_, name() + ".past[" + std::to_string(i) + "]", &past[i]);
        lag.equals("lag", i + 1);
        for (const std::string_view member : {"stale_mean", "compensated_mean", "stale_var", "compensated_var"})
          lag.check(member, Kind::measure);
      }
    }
    accept();
  }

  /// The event at hand, which is of that kind and has the members of `wanted`.
  Place next(const char* kind, const Json& wanted = Json::object()) {
    const Place event(path_, name(), at_ < list_.size() ? &list_[at_] : nullptr);
    event.equals("event", kind);
    for (const auto& [member, value] : wanted.items()) event.equals(member, value);
    return event;
  }
  void accept() { events_.push_back(list_[at_++]); }
  std::string name() const { return "events[" + std::to_string(at_) + "]"; }

  const std::string& path_;
  Json& list_;
  const Settings& settings_;
  Events events_;
  std::size_t at_ = 0;
};

}  // namespace

std::string text_of(const Position& position) {
  Json text{position.job, position.epoch};
  if (position.update > 0) text.push_back(position.update);
  return text.dump();
}

Position read_position(const std::string& path, const std::string& text, const Settings& settings) {
  const Json given = parse_text(path, "position", text);
  const std::size_t jobs = jobs_of(settings).size();
  const auto below = [](const Json& value, std::uint64_t end) {
    return value.is_number_unsigned() && value.get<std::uint64_t>() < end;
  };
  const bool right = given.is_array() && (given.size() == 2 || given.size() == 3) && below(given[0], jobs + 1) &&
                     below(given[1], given[0] == jobs ? 1 : static_cast<std::uint64_t>(settings.epochs)) &&
                     (given.size() == 2 || (given[0] != jobs && given[2] != 0 && below(given[2], 1ULL << 53)));
  if (!right)
    bad_file(path, "position is " + shown(given) + ", must be [run, epoch] with a run from 0 to " +
                       std::to_string(jobs) + " and an epoch from 0 to " + std::to_string(settings.epochs - 1) +
                       " (0 after the last run), or [run, epoch, update] within one");
  return {given[0].get<std::size_t>(), given[1].get<std::int64_t>(),
          given.size() == 3 ? given[2].get<std::int64_t>() : 0};
}

std::string text_of(const Partial& partial) {
  Json past = Json::array();
  for (const auto& layer : partial.past.sums()) {
    Json& lags = past.emplace_back(Json::array());
    for (const auto& [sum, count] : layer) lags.push_back({sum.stale_mean, sum.mean, sum.stale_var, sum.var, count});
  }
  return Json{{"loss", partial.loss},
              {"seconds", partial.seconds},
              {"exchanges", partial.exchanges},
              {"bytes", partial.bytes},
              {"past", past}}
      .dump();
}

Partial read_partial(const std::string& path, const std::string& text, const Position& position) {
  Json given = parse_text(path, "partial", text);
  const Place place(path, "partial", &given);
  place.check("loss", Kind::measure);
  for (const std::string_view member : {"seconds", "exchanges", "bytes"}) place.check(member, Kind::amount);
  if (!place.has("past") || !place["past"].is_array())
    place.bad("past", place.has("past") ? &place["past"] : nullptr, "a list");
  PastAverage::Sums sums;
  for (const Json& layer : place["past"]) {
    if (!layer.is_array()) place.bad("past", &layer, "a list of lists");
    auto& lags = sums.emplace_back();
    for (const Json& lag : layer) {
      if (!lag.is_array() || lag.size() != 5 ||
          !std::all_of(lag.begin(), lag.end(), [](const Json& value) { return fits(value, Kind::measure); }) ||
          !lag[4].is_number_unsigned())
        place.bad("past", &lag, "four numbers and how many were added");
      const auto number = [&](std::size_t i) {
        return lag[i].is_null() ? std::numeric_limits<double>::quiet_NaN() : lag[i].get<double>();
      };
      lags.push_back({{number(0), number(1), number(2), number(3)}, lag[4].get<std::int64_t>()});
    }
  }
  return {position.update,    given["loss"],  given["seconds"],
          given["exchanges"], given["bytes"], PastAverage(std::move(sums))};
}

Events read_events(const std::string& path, const std::string& text, const Settings& settings, const Json& config,
                   const Position& position) {
  Json list = parse_text(path, "events", text);
  if (!list.is_array()) bad_file(path, "events is " + shown(list) + ", must be a list");
  Reader reader(path, list, settings);
  reader.config(config);
  const std::vector<Job> jobs = jobs_of(settings);
  for (std::size_t j = 0; j < jobs.size() && j <= position.job; ++j)
    for (std::int64_t epoch = 0; epoch < (j < position.job ? settings.epochs : position.epoch); ++epoch)
      reader.epoch(jobs[j], epoch);
  return reader.end();
}

}  // namespace allnorm::launch::train
