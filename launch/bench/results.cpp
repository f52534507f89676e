#include "launch/bench/results.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <map>
#include <string_view>
#include <thread>
#include <utility>

#include "build_config.hpp"
#include "kernels/ops.hpp"
#include "launch/files/input_file.hpp"
#include "launch/files/json_lines.hpp"
#include "launch/files/json_number.hpp"
#include "src/gpu.hpp"

namespace allnorm::launch::bench {

namespace {

// One number of a line: the same in the table, in JSON and in CSV.
struct Column {
  const char *name, *title, *unit;
  std::size_t width;
  int digits;
  bool of_exchange = false;  // shown where there are several ranks
  double scale = 1;          // from JSON's unit to the table's
};
constexpr Column columns[] = {
    {"bytes", "size", "KiB", 9, 1, false, 1.0 / 1024},
    {"forward_us", "forward", "us", 10, 1},
    {"forward_us_p99", "p99", "us", 10, 1},
    {"backward_us", "backward", "us", 10, 1},
    {"backward_us_p99", "p99", "us", 10, 1},
    {"forward_gb_s", "fwd", "GB/s", 7, 1},
    {"backward_gb_s", "bwd", "GB/s", 7, 1},
    {"forward_of_triad", "fwd", "%triad", 7, 0, false, 100},
    {"backward_of_triad", "bwd", "%triad", 7, 0, false, 100},
    {"exchange_us", "exchange", "us", 9, 1, true},
    {"exposed_us", "exposed", "us", 9, 1, true},
    {"message_bytes", "message", "B", 9, 0, true},
    {"algbw_gb_s", "algbw", "GB/s", 7, 3, true},
    {"busbw_gb_s", "busbw", "GB/s", 7, 3, true},
    {"ratio_to_local", "ratio", "to local", 10, 2, true},
    {"max_error", "error", "", 9, -2},
    {"wrong", "wrong", "", 6, 0},
};
// What a line is of; mode and rotate are not of every line.
constexpr const char* kind_names[] = {"layer",     "shape", "dtype",   "layout", "device",
                                      "transport", "ranks", "threads", "mode",   "rotate"};

std::string text_of(double value, int digits) {
  std::array<char, 64> text{};
  if (digits < 0)
    std::snprintf(text.data(), text.size(), "%.*g", -digits, value);
  else
    std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}

// What fills a cell up to its width, and parts it from the next in any case.
std::string space(const std::string& text, std::size_t width) {
  return std::string(text.size() < width ? width - text.size() : 1, ' ');
}
std::string right(const std::string& text, std::size_t width) { return space(text, width) + text; }
std::string left(const std::string& text, std::size_t width) { return text + space(text, width); }

constexpr std::size_t mode_width = 6;
std::size_t layer_width(const Plan& plan) {
  std::size_t width = 6;
  for (const Case& one : plan.cases) width = std::max(width, one.text.size() + 1);
  return width;
}
std::size_t shape_width(const Plan& plan) {
  std::size_t width = 9;
  for (const Case& one : plan.cases) width = std::max(width, to_string(one.shape).size() + 6);
  return width;
}

// "model name\t: ..." of Linux; empty elsewhere.
std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name") && line.find(": ") != line.npos) return line.substr(line.find(": ") + 2);
  return {};
}

bool is_on_gpu(const Plan& plan) { return plan.ranks.device != "cpu"; }

Json kind_of(const Plan& plan, const Rank& rank) {
  Json kind{{"dtype", to_string(plan.dtype)},
            {"layout", plan.order == Order::channels_last ? "channels_last" : "channels_first"},
            {"device", plan.ranks.device},
            {"transport", rank.world->transport()},
            {"ranks", rank.size},
            {"threads", plan.ranks.threads}};
  if (plan.rotate) kind["rotate"] = *plan.rotate;
  return kind;
}

std::string key_of(const Json& event) {
  std::string key;
  for (const char* name : kind_names) key += event.value(name, Json()).dump() + " ";
  return key + event.value("count", Json(1)).dump();
}

std::string words_of(const Json& event) {
  std::string words = event.value("layer", std::string());
  for (const char* name : {"shape", "dtype", "mode"})
    if (event.contains(name)) words += " " + event[name].get<std::string>();
  return words;
}

}  // namespace

std::vector<Seat> seats_of(Rank& rank) {
  // Texts of 64 letters, the process and the number of its device, in doubles.
  constexpr std::size_t letters = 64, each = 2 * letters + 2;
  std::array<char, letters> host{}, gpu{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host = {};
  const Device device = rank.queue.device();
  if (device.kind != DeviceKind::cpu) gpu_facts(device.index).name.copy(gpu.data(), gpu.size() - 1);
  Message message{
      Header("bench", Direction::agreement, 2), std::vector<double>(each * static_cast<std::size_t>(rank.size)), 0, {}};
  double* const own = message.payload.data() + each * static_cast<std::size_t>(rank.rank);
  std::copy(host.begin(), host.end(), own);
  std::copy(gpu.begin(), gpu.end(), own + letters);
  own[2 * letters] = static_cast<double>(::getpid());
  own[2 * letters + 1] = device.index;
  const Message all = rank.world->exchange(std::move(message), rank.queue);
  std::vector<Seat> seats(static_cast<std::size_t>(rank.size));
  for (std::size_t r = 0; r < seats.size(); ++r) {
    const double* at = all.payload.data() + each * r;
    const auto text_at = [](const double* from) {
      std::string text;
      for (std::size_t i = 0; i < letters && from[i] > 0; ++i) text += static_cast<char>(from[i]);
      return text;
    };
    seats[r] = {text_at(at), to_string({device.kind, static_cast<int>(at[2 * letters + 1])}), text_at(at + letters),
                static_cast<std::int64_t>(at[2 * letters])};
  }
  return seats;
}

Json machine_event(const char* command) {
  return {{"event", "config"},
          {"command", command},
          {"version", build::version},
          {"commit", build::commit},
          {"compiler", build::compiler},
          {"build_type", build::type},
          {"cpu", cpu_name()},
          {"vectors", Queue::cpu().ops().name},
          {"cores", std::thread::hardware_concurrency()}};
}

Json config_event(const Plan& plan, const std::vector<Seat>& seats, const Rank& rank) {
  Json event = machine_event("bench");
  event["iterations"] = plan.iterations;
  event["warm_up"] = plan.warm_up;
  if (!plan.model.empty()) event["model"] = plan.model;
  event.update(kind_of(plan, rank));
  if (is_on_gpu(plan)) {
    const GpuFacts gpu = gpu_facts(rank.queue.device().index);
    event.update(Json{{"gpu", gpu.name},
                      {"cuda_driver", gpu.driver},
                      {"cuda_runtime", gpu.runtime},
                      {"l2_bytes", gpu.l2_bytes},
                      {"triad", "copy"}});
  }
  for (std::size_t r = 0; r < seats.size(); ++r) {
    event["seats"].push_back(
        {{"rank", r}, {"host", seats[r].host}, {"pid", seats[r].pid}, {"device", seats[r].device}});
    if (!seats[r].gpu.empty()) event["seats"].back()["gpu"] = seats[r].gpu;
  }
  return event;
}

Json measurement_event(const Plan& plan, const Measurement& of, const Rank& rank) {
  const auto gb_s = [](double bytes, double us) { return us > 0 ? Json(1e-3 * bytes / us) : Json(); };
  Json event{{"event", "measurement"}, {"layer", of.of->text}, {"shape", to_string(of.of->shape)}};
  if (!plan.model.empty()) event["model"] = plan.model;
  event["count"] = of.of->count;
  event.update(kind_of(plan, rank));
  if (!of.mode.empty()) event["mode"] = of.mode;
  event["sets"] = of.sets;
  event["bytes"] = of.bytes;
  event["triad_gb_s"] = of.triad_gb_s;
  event["simulated"] = false;
  if (!of.failure.empty()) {
    event["failure"] = of.failure;
    return event;
  }
  event["forward_us"] = of.forward.median;
  event["forward_us_p99"] = of.forward.p99;
  event["backward_us"] = of.backward.median;
  event["backward_us_p99"] = of.backward.p99;
  event["forward_gb_s"] = gb_s(3 * of.bytes, of.forward.median);
  event["backward_gb_s"] = gb_s(5 * of.bytes, of.backward.median);
  event["forward_of_triad"] = 1e-3 * 3 * of.bytes / of.forward.median / of.triad_gb_s;
  event["backward_of_triad"] = 1e-3 * 5 * of.bytes / of.backward.median / of.triad_gb_s;
  if (of.exchange) {
    const Measurement::Exchange& x = *of.exchange;
    const double ranks = x.ranks;
    event["exchange_us"] = x.alone;
    event["exposed_us"] = of.both() - x.local;
    event["message_bytes"] = x.message;
    event["algbw_gb_s"] = gb_s(x.message, x.alone);
    event["busbw_gb_s"] = gb_s(x.message * 2 * (ranks - 1) / ranks, x.alone);  // as nccl-tests' all-reduce
    event["ratio_to_local"] = x.local > 0 ? Json(of.both() / x.local) : Json();
  }
  if (of.check) {
    event["max_error"] = of.check->max_error;
    event["wrong"] = of.check->wrong;
  }
  return event;
}

Json sum_event(const Plan& plan, const std::string& layer, const std::string& mode, const std::vector<Json>& events) {
  Json sum{{"event", "sum"}, {"layer", layer}, {"shape", plan.model}, {"model", plan.model}};
  std::int64_t count = 0;
  for (const Json& event : events) {
    if (!is_event(event, "measurement") || event["layer"].get<std::string>() != layer ||
        event.value("mode", std::string()) != mode)
      continue;
    const auto times = whole(event["count"]);
    count += times;
    for (const char* name : kind_names)
      if (!sum.contains(name) && event.contains(name)) sum[name] = event[name];
    for (const char* name : {"bytes", "forward_us", "backward_us", "exchange_us", "exposed_us", "message_bytes"})
      if (event.contains(name))
        sum[name] = sum.value(name, 0.0) + static_cast<double>(times) * event[name].get<double>();
    if (event.contains("failure")) sum["failure"] = event["failure"];
  }
  if (sum.contains("failure"))  // of some, so that the others' times are not the sum
    for (const char* name : {"forward_us", "backward_us", "exchange_us", "exposed_us", "message_bytes"})
      sum.erase(name);
  sum["count"] = count;
  return sum;
}

std::string header_text(const Json& config) {
  const auto word = [&](const char* name) {
    const Json& value = config[name];
    return value.is_string() ? value.get<std::string>() : value.dump();
  };
  std::string text = "# allnorm " + word("version") + " (commit " + word("commit") + ", " + word("compiler") + ", " +
                     word("build_type") + ")\n# " + word("cpu") + ", " + word("cores") + " cores, " + word("vectors") +
                     "; " + word("transport") + ", threads per rank: " + word("threads") +
                     "\n# iterations: " + word("iterations") + ", warm-up: " + word("warm_up") + ", " + word("dtype") +
                     ", " + word("layout") + (config.contains("model") ? ", model: " + word("model") : "") + "\n";
  const bool on_gpu = config.contains("gpu");
  if (on_gpu)
    text += "# CUDA driver " + word("cuda_driver") + ", runtime " + word("cuda_runtime") + "; " + word("gpu") +
            ", L2 cache of " + text_of(1e-6 * config["l2_bytes"].get<double>(), 0) + " MB\n";
  for (const Json& seat : config["seats"])
    text += "# rank " + seat["rank"].dump() + ": host " + seat["host"].get<std::string>() + ", pid " +
            seat["pid"].dump() + ", device " + seat["device"].get<std::string>() +
            (seat.contains("gpu") ? " (" + seat["gpu"].get<std::string>() + ")" : "") + "\n";
  if (config["ranks"].get<std::uint64_t>() > config["cores"].get<std::uint64_t>())
    text += "# oversubscribed: there are more ranks than cores\n";
  if (on_gpu)
    text +=
        "# times on the GPU, between events; eager: single calls, graph: replays of at least 10; triad: a copy on "
        "the GPU, 2 transfers\n";
  return text + "# times: medians of a rank's calls, the largest of the ranks; GB/s: 3 transfers forward, 5 backward\n";
}

std::string titles_text(const Plan& plan, int ranks) {
  std::string titles = left("layer", layer_width(plan)) + left("shape", shape_width(plan));
  if (is_on_gpu(plan)) titles += left("mode", mode_width);
  std::string units = std::string(titles.size(), ' ');
  for (const Column& column : columns) {
    if (column.of_exchange && ranks == 1) continue;
    titles += right(column.title, column.width);
    units += right(column.unit, column.width);
  }
  return titles + "\n" + units + "\n";
}

std::string line_text(const Plan& plan, const Json& event) {
  const auto count = whole(event["count"]);
  std::string line =
      left(event["layer"], layer_width(plan)) +
      left(event["shape"].get<std::string>() + (count > 1 ? " x" + std::to_string(count) : ""), shape_width(plan));
  if (is_on_gpu(plan)) line += left(event["mode"], mode_width);
  if (event.contains("failure")) return line + "  none: " + event["failure"].get<std::string>() + "\n";
  for (const Column& column : columns) {
    if (column.of_exchange && whole(event["ranks"]) == 1) continue;
    const Json value = event.value(column.name, Json());
    line += right(value.is_number() ? text_of(column.scale * value.get<double>(), column.digits) : "-", column.width);
  }
  return line + "\n";
}

std::string csv_text(const std::vector<Json>& events) {
  std::string text = "event";
  for (const char* name : kind_names) text += std::string(",") + name;
  text += ",count,triad_gb_s";
  for (const Column& column : columns) text += std::string(",") + column.name;
  text += "\n";
  for (const Json& event : events) {
    if (is_event(event, "config")) continue;
    const auto cell = [&](const char* name) {
      const Json value = event.value(name, Json());
      if (value.is_null()) return std::string();
      std::string cell_text = value.is_string() ? value.get<std::string>() : value.dump();
      return value.is_string() ? "\"" + cell_text + "\"" : cell_text;
    };
    text += cell("event");
    for (const char* name : kind_names) text += "," + cell(name);
    text += "," + cell("count") + "," + cell("triad_gb_s");
    for (const Column& column : columns) text += "," + cell(column.name);
    text += "\n";
  }
  return text;
}

Comparison compare(const std::vector<Json>& base, const std::vector<Json>& events, double tolerance,
                   const std::string& path) {
  Comparison found;
  for (const char* name : {"cpu", "cores", "device", "vectors", "gpu"}) {
    const Json was = base.front().value(name, Json()), is = events.front().value(name, Json());
    if (was != is)
      found.warnings.push_back(path + " is of another machine or device: " + name + " was " + was.dump() + ", is " +
                               is.dump());
  }
  std::map<std::string, const Json*> earlier;
  std::size_t lines = 0;
  for (const Json& event : base)
    if (is_event(event, "measurement") || is_event(event, "sum")) ++lines, earlier[key_of(event)] = &event;
  std::size_t own = 0;
  for (const Json& event : events) {
    if (is_event(event, "config")) continue;
    ++own;
    const auto at = earlier.find(key_of(event));
    if (at == earlier.end()) continue;
    ++found.common;
    if (event.contains("failure") || at->second->contains("failure")) {
      if (!at->second->contains("failure"))
        found.slower.push_back(words_of(event) + " has no time, had one: " + event["failure"].get<std::string>());
      continue;
    }
    for (const auto& [name, title] : {std::pair{"forward_us", "forward"}, std::pair{"backward_us", "backward"}}) {
      const Json was = at->second->value(name, Json()), is = event.value(name, Json());
      if (!was.is_number() || was.get<double>() <= 0)
        bad_file(path, "has " + std::string(name) + " " + was.dump() + ", must be a number above 0");
      const double ratio = is.get<double>() / was.get<double>();
      if (ratio > 1 + tolerance)
        found.slower.push_back(words_of(event) + ", " + title + ": " + text_of(is, 1) + " us, was " + text_of(was, 1) +
                               ": " + text_of(100 * (ratio - 1), 0) + " % slower");
    }
  }
  if (found.common > 0 && (found.common < own || found.common < lines))
    found.warnings.push_back(path + " has other lines: " + std::to_string(found.common) + " are compared, of " +
                             std::to_string(own) + " of this run and " + std::to_string(lines) + " of it");
  return found;
}

}  // namespace allnorm::launch::bench
