#include "launch/scale/simulated.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <tuple>

#include "launch/bench/models.hpp"
#include "launch/bench/subject.hpp"
#include "launch/files/input_file.hpp"
#include "launch/files/json_lines.hpp"
#include "launch/files/json_number.hpp"
#include "launch/installed.hpp"
#include "launch/machine.hpp"
#include "launch/progress.hpp"
#include "launch/ranks.hpp"
#include "launch/scale/clusters.hpp"
#include "launch/scale/folder.hpp"
#include "launch/scale/measured.hpp"

namespace allnorm::launch::scale {

namespace {

// Where ranks work between exchanges, so long that each begins with all messages of the one before at their places.
constexpr double between_us = 1000;
constexpr int exchanges = 2;                                            // of each size; a simulation has no noise
constexpr std::int64_t calibration_channels[] = {256, 64, 1024, 2048};  // the first calibrates, all check
constexpr std::int64_t calibration_ranks[] = {2, 4};                    // so do these
constexpr const char* calibration_layer = "sync_batch_norm";            // one exchange each way

std::int64_t samples_in(const Json& row) {
  return std::stoll(row.at("shape").get<std::string>().substr(1));
}  // "(N,..."

// ---- the simulator --------------------------------------------------------------------------------------------------

struct Experiment {
  std::int64_t group = 1, doubles = 0;
  auto operator<=>(const Experiment&) const = default;
};
struct Times {
  double exchange_us = 0, exposed_us = 0;
};
using Simulated = std::map<Experiment, Times>;

Simulated run_simulator(const Json& cluster, std::int64_t ranks, double overhead_us, const std::set<Experiment>& all) {
  Json job{{"cluster", cluster},
           {"ranks", ranks},
           {"overhead_us", overhead_us},
           {"between_us", between_us},
           {"exchanges", exchanges}};
  for (const Experiment& one : all) job["experiments"].push_back({{"group", one.group}, {"doubles", one.doubles}});
  const Folder folder;
  const std::string path = folder.file("job.json");
  std::ofstream(path) << job.dump();
  constexpr double no_limit = 1e7;
  const Ended ended = run_program({simulator_program(), path}, no_limit);
  expect(ended.code == 0, Code::device, [&] {
    return "the simulation of " + std::to_string(ranks) + " ranks has ended with code " + std::to_string(ended.code) +
           ": " +
           printable(ended.text.substr(
               ended.text.find_last_of('\n', ended.text.size() - std::min<std::size_t>(2, ended.text.size())) + 1));
  });
  Simulated made;
  std::istringstream lines(ended.text);
  for (std::string line; std::getline(lines, line);) {
    const Json one = Json::parse(line, nullptr, false);  // SimGrid may say something beside it
    if (one.is_object())
      made[{whole(one.at("group")), whole(one.at("doubles"))}] = {one.at("exchange_us").get<double>(),
                                                                  one.at("exposed_us").get<double>()};
  }
  return made;
}

void add_experiments(std::set<Experiment>& all, std::int64_t group, const LayerMessages& messages) {
  for (const Messages& one : {messages.forward, messages.backward})
    if (group > 1 && one.exchanges > 0) all.insert({group, one.doubles});
}
Times times_of(const Simulated& simulated, std::int64_t group, const LayerMessages& messages) {
  Times sum;
  for (const Messages& one : {messages.forward, messages.backward}) {
    if (group == 1 || one.exchanges == 0) continue;
    const Times& each = simulated.at({group, one.doubles});
    sum.exchange_us += static_cast<double>(one.exchanges) * each.exchange_us;
    sum.exposed_us += static_cast<double>(one.exchanges) * each.exposed_us;
  }
  return sum;
}

// ---- the model against this machine ---------------------------------------------------------------------------------

std::vector<Json> results_for(const SweepFile& file, const char* use) {
  std::vector<Json> rows;
  for (const Json& row : file.events())
    if (is_event(row, "measurement") && row.value("use", "") == use) rows.push_back(row);
  return rows;
}

void measure_for(const char* use, SweepFile& file, const Arguments& words, const std::string& transport,
                 std::int64_t ranks) {
  const std::vector<Json> kept = results_for(file, use);
  std::vector<Json> rows;
  for (Json& event : run_bench(words, transport, ranks, Exchanges::by_messages)) {
    const auto same = [&event](const Json& row) {
      return row["layer"] == event["layer"] && row["shape"] == event["shape"] && row["ranks"] == event["ranks"];
    };
    if (!is_event(event, "measurement") || std::any_of(kept.begin(), kept.end(), same)) continue;
    event["transport"] = transport;
    event["use"] = use;
    event["oversubscribed"] = ranks > static_cast<std::int64_t>(usable_cpus().size());
    rows.push_back(std::move(event));
  }
  file.add(rows);
}

struct Calibration {
  double overhead_us = 0;
  std::vector<Json> events{};
};

// What software takes for a message is such that two ranks' exchange of one size takes as long as it does here; all
// other sizes and four ranks tell how far that carries.
Calibration calibrate(const std::vector<Json>& rows) {
  double rate = 0;  // GB/s of a rank that reads and writes
  for (const Json& row : rows) rate = std::max(rate, row.at("triad_gb_s").get<double>());
  const Json here{{"ranks_per_node", 1024},  {"nodes_per_leaf", 1},  {"node_latency_us", 0},
                  {"node_gb_s", rate},       {"nics_per_node", 1},   {"nic_gb_s", rate},
                  {"network_latency_us", 0}, {"leaf_latency_us", 0}, {"leaf_gb_s", rate}};
  const auto simulated = [&](std::int64_t ranks, std::int64_t channels, double overhead_us) {
    const LayerMessages messages = messages_of(Layer(calibration_layer), channels);
    std::set<Experiment> all;
    add_experiments(all, ranks, messages);
    return times_of(run_simulator(here, ranks, overhead_us, all), ranks, messages).exchange_us;
  };
  const auto channels_in = [](const Json& row) {  // "(1,C,1,1)"
    const std::string shape = row.at("shape").get<std::string>();
    return static_cast<std::int64_t>(std::stoll(shape.substr(shape.find(',') + 1)));
  };
  Calibration made;
  const Json& base = rows.front();
  const auto ranks = whole(base.at("ranks"));
  const double none = simulated(ranks, channels_in(base), 0), one = simulated(ranks, channels_in(base), 1);
  made.overhead_us = std::max(0.0, (base.at("exchange_us").get<double>() - none) / (one - none));
  for (const Json& row : rows) {
    const double measured = row.at("exchange_us").get<double>(),
                 model = simulated(whole(row.at("ranks")), channels_in(row), made.overhead_us);
    made.events.push_back({{"event", "calibration"},
                           {"transport", row.at("transport")},
                           {"ranks", row.at("ranks")},
                           {"message_bytes", row.at("message_bytes")},
                           {"measured_us", measured},
                           {"simulated_us", model},
                           {"error", model / measured - 1},
                           {"overhead_us", made.overhead_us},
                           {"calibrated", &row == &base},
                           {"oversubscribed", row.at("oversubscribed")}});
  }
  return made;
}

Calibration calibration_of(const Plan& plan, SweepFile& file) {
  constexpr const char* use = "calibration";
  std::vector<Json> rows = results_for(file, use);
  Arguments words{"--layer",      calibration_layer,
                  "--iterations", std::to_string(plan.iterations),
                  "--warm-up",    std::to_string(plan.warm_up),
                  "--check",      "0"};
  for (const std::int64_t channels : calibration_channels)
    words.insert(words.end(), {"--shape", "1," + std::to_string(channels) + ",1,1"});
  for (const std::int64_t ranks : calibration_ranks)
    if (std::count_if(rows.begin(), rows.end(), [&](const Json& row) { return row.at("ranks") == ranks; }) <
        std::ssize(calibration_channels))
      measure_for(use, file, words, plan.transports.back(), ranks);
  return calibrate(results_for(file, use));
}

// ---- computing times ------------------------------------------------------------------------------------------------

// A layer without its group: what it is and all else that it does.
std::string base_of(const Layer& layer) {
  std::string text = std::to_string(family_of(*layer.row));
  for (const Attribute& attribute : layer.row->attributes)
    if (attribute.name != "sync") text += ":" + std::string(attribute.name) + "=" + attribute.get(layer.options);
  return text;
}
// As it was written, without its group.
std::string text_of(const std::string& layer) {
  std::string text;
  std::istringstream parts(layer);
  for (std::string part; std::getline(parts, part, ':');)
    if (!part.starts_with("sync=")) text += (text.empty() ? "" : ":") + part;
  return text;
}

bool syncs(const std::string& layer) { return parse_layer(layer).row->attribute("sync") != nullptr; }

struct Subject {
  std::string text{};                                             // without its group
  std::map<std::int64_t, std::map<std::string, double>> times{};  // [samples][shape without samples], us
};

std::string channels_and_space(const std::string& shape) { return shape.substr(shape.find(',') + 1); }

// Of the layers asked for, or of all in the rows; [what tells layers apart].
std::map<std::string, Subject> subjects_of(const Plan& plan, const std::vector<Json>& rows) {
  std::map<std::string, Subject> subjects;
  std::set<std::string> asked;
  for (const std::string& layer : plan.layers) asked.insert(base_of(parse_layer(layer)));
  for (const Json& row : rows) {
    const std::string text = row.at("layer").get<std::string>(), base = base_of(parse_layer(text));
    if (!asked.empty() && asked.count(base) == 0) continue;
    Subject& subject = subjects[base];
    if (subject.text.empty()) subject.text = text_of(text);
    const double time =
        row.at("forward_us").get<double>() + row.at("backward_us").get<double>() - row.value("exposed_us", 0.0);
    subject.times[samples_in(row)][channels_and_space(row.at("shape").get<std::string>())] = time;
  }
  return subjects;
}

std::vector<Json> computing_rows(const Plan& plan, const bench::Model& model, SweepFile& file) {
  std::vector<Json> rows;
  for (const std::string& path : plan.computing)
    for (Json& event : read_json_lines(path))
      if (is_event(event, "measurement") && !event.value("simulated", false) && event.value("model", "") == model.name)
        rows.push_back(std::move(event));
  if (!plan.computing.empty()) return rows;
  constexpr const char* use = "compute";
  rows = results_for(file, use);
  for (const std::int64_t batch : plan.batches) {
    const auto there =
        std::count_if(rows.begin(), rows.end(), [&](const Json& row) { return samples_in(row) == batch; });
    if (there >= std::ssize(plan.layers) * std::ssize(model.layers)) continue;
    Arguments words{"--model",          plan.model,
                    "--batch-per-rank", std::to_string(batch),
                    "--check",          "0",
                    "--iterations",     std::to_string(plan.iterations),
                    "--warm-up",        std::to_string(plan.warm_up),
                    "--dtype",          plan.dtype,
                    "--layout",         plan.layout,
                    "--threads",        std::to_string(plan.threads)};
    for (const std::string& layer : plan.layers)
      words.insert(words.end(), {"--layer", text_of(layer) + (syncs(layer) ? ":sync=none" : "")});
    measure_for(use, file, words, "threads", 1);
  }
  return results_for(file, use);
}

// Of all layers of the model; nothing where a time is missing.
double compute_us(const bench::Model& model, const Subject& subject, std::int64_t batch, const Plan& plan) {
  double sum = 0;
  for (const bench::ModelLayer& layer : model.layers) {
    std::vector<std::int64_t> extents{batch, layer.channels};
    extents.insert(extents.end(), layer.space.begin(), layer.space.end());
    const std::string shape = to_string(Shape(extents));
    const auto of_batch = subject.times.find(batch);
    const bool there = of_batch != subject.times.end() && of_batch->second.count(channels_and_space(shape)) > 0;
    if (!there)
      bad_file(plan.computing.empty() ? plan.resume : plan.computing.front(),
               "has no time of " + subject.text + " at " + shape + ", must be of bench --layer " + subject.text +
                   " --model " + plan.model + " --batch-per-rank " + std::to_string(batch));
    sum += static_cast<double>(layer.count) * of_batch->second.at(channels_and_space(shape));
  }
  return sum;
}

// ---- rows -----------------------------------------------------------------------------------------------------------

struct Setting {
  const Subject* subject;
  std::string layer;  // with its group
  std::int64_t group, batch;
};
using SettingKey = std::tuple<std::string, std::int64_t, std::string, std::int64_t, std::int64_t>;

std::vector<Setting> settings_of_cluster(const Plan& plan, const std::map<std::string, Subject>& subjects,
                                         std::int64_t ranks) {
  std::vector<Setting> settings;
  for (const auto& [base, subject] : subjects) {
    const bool in_groups = syncs(subject.text);
    std::vector<std::int64_t> groups{1};
    for (const std::int64_t group : plan.groups) {
      const std::int64_t size = group == Sync::world ? ranks : std::min(group, ranks);
      if (in_groups && std::find(groups.begin(), groups.end(), size) == groups.end()) groups.push_back(size);
    }
    for (const std::int64_t batch : plan.batches)
      for (const std::int64_t group : groups) {
        const std::string sync = group == 1 ? "none" : group == ranks ? "world" : std::to_string(group);
        settings.push_back({&subject, in_groups ? subject.text + ":sync=" + sync : subject.text, group, batch});
      }
  }
  return settings;
}

void simulate_cluster(const Plan& plan, const Cluster& cluster, const bench::Model& model,
                      const std::map<std::string, Subject>& subjects, double overhead_us, std::int64_t ranks,
                      SweepFile& file) {
  std::set<SettingKey> there;
  for (const Json& row : file.events())
    if (is_event(row, "measurement") && row.value("simulated", false))
      there.emplace(row.at("cluster").get<std::string>(), whole(row.at("ranks")), row.at("layer").get<std::string>(),
                    whole(row.at("group")), whole(row.at("batch_per_rank")));
  std::vector<Setting> settings = settings_of_cluster(plan, subjects, ranks);
  std::erase_if(settings, [&](const Setting& p) {
    return there.count({cluster.name, ranks, p.layer, p.group, p.batch}) > 0;
  });
  if (settings.empty()) return;
  std::map<std::pair<std::string, std::int64_t>, LayerMessages> messages;  // by layer and channels
  std::set<Experiment> all;
  for (const Setting& setting : settings)
    for (const bench::ModelLayer& layer : model.layers) {
      if (setting.group == 1) continue;
      const auto key = std::pair(setting.subject->text, layer.channels);
      if (messages.count(key) == 0)
        messages[key] = messages_of(parse_layer(setting.subject->text).set("sync", "world"), layer.channels);
      add_experiments(all, setting.group, messages[key]);
    }
  const Simulated simulated = all.empty() ? Simulated{} : run_simulator(cluster.parameters, ranks, overhead_us, all);
  std::vector<Json> rows;
  for (const Setting& setting : settings) {
    Times times;
    double bytes = 0;
    for (const bench::ModelLayer& layer : model.layers) {
      if (setting.group == 1) continue;
      const LayerMessages& own = messages[{setting.subject->text, layer.channels}];
      const Times one = times_of(simulated, setting.group, own);
      const auto count = static_cast<double>(layer.count);
      times.exchange_us += count * one.exchange_us;
      times.exposed_us += count * one.exposed_us;
      for (const Messages& m : {own.forward, own.backward})
        bytes += count * static_cast<double>(m.exchanges * m.doubles) * sizeof(double);
    }
    const double compute = compute_us(model, *setting.subject, setting.batch, plan);
    rows.push_back({{"event", "measurement"},
                    {"layer", setting.layer},
                    {"base", setting.subject->text},
                    {"shape", model.name},
                    {"model", model.name},
                    {"cluster", cluster.name},
                    {"dtype", plan.dtype},
                    {"layout", plan.layout},
                    {"transport", "simulated"},
                    {"ranks", ranks},
                    {"group", setting.group},
                    {"batch_per_rank", setting.batch},
                    {"compute_us", compute},
                    {"exchange_us", times.exchange_us},
                    {"exposed_us", times.exposed_us},
                    {"time_us", compute + times.exposed_us},
                    {"message_bytes", bytes},
                    {"effective_batch", effective_batch(parse_layer(setting.layer), ranks, setting.batch)},
                    {"simulated", true}});
  }
  file.add(rows);
}

}  // namespace

LayerMessages messages_of(const Layer& layer, std::int64_t channels) {
  constexpr std::int64_t few = 32, more = 64;  // group_norm has 32 groups
  const auto sent = [&](std::int64_t some) {
    RankOptions options;
    options.ranks = 2;
    options.transport = "threads";
    LayerMessages found;
    std::mutex mutex;
    const int code = run_ranks(options, [&](Rank& rank) {
      bench::Subject subject(layer, {1, some, 2, 2}, DType::f32, Order::channels_first,
                             sync_group(rank.world, layer.options.sync, rank.queue), rank.rank, rank.queue);
      const auto of = [&](const auto& call) {
        const auto before = subject.group().traffic();
        call();
        const auto after = subject.group().traffic();
        const auto count = static_cast<std::int64_t>(after.exchanges - before.exchanges);
        const auto doubles = static_cast<std::int64_t>((after.bytes - before.bytes) / sizeof(double));
        return Messages{count, count > 0 ? doubles / count : 0};
      };
      const Messages forward = of([&] { subject.forward(); }), backward = of([&] { subject.backward(); });
      const std::lock_guard lock(mutex);
      found = {forward, backward};
    });
    expect(code == exit_success, Code::device,
           [&] { return std::string(layer.row->name) + " has failed on two ranks"; });
    return found;
  };
  const LayerMessages a = sent(few), b = sent(more);
  const auto at = [&](const Messages& x, const Messages& y) {
    return Messages{x.exchanges, x.doubles + (y.doubles - x.doubles) * (channels - few) / (more - few)};
  };
  return {at(a.forward, b.forward), at(a.backward, b.backward)};
}

std::vector<Json> simulate(const Plan& plan, SweepFile& file) {
  std::vector<Cluster> clusters;
  for (const std::string& name : plan.clusters) clusters.push_back(read_cluster(name));
  const bench::Model model = bench::read_model(plan.model);
  const auto subjects = subjects_of(plan, computing_rows(plan, model, file));
  if (subjects.empty())
    bad_file(plan.computing.front(),
             "has no time of these layers and " + plan.model + ", must be a log of bench --model " + plan.model);
  for (const auto& [base, subject] : subjects)
    for (const std::int64_t batch : plan.batches) compute_us(model, subject, batch, plan);  // before what takes long
  const Calibration calibration = calibration_of(plan, file);
  Progress progress(progress_kind(plan.progress), static_cast<std::int64_t>(clusters.size() * plan.ranks.size()), 0,
                    "simulations", 10);
  for (const Cluster& cluster : clusters)
    for (const std::int64_t ranks : plan.ranks) {
      progress.describe(cluster.name + ", " + std::to_string(ranks) + " ranks, simulated");
      simulate_cluster(plan, cluster, model, subjects, calibration.overhead_us, ranks, file);
      progress.tick();
      progress.say("done", false);
    }
  return calibration.events;
}

std::string simulated_text(const std::vector<Json>& events, const std::vector<Json>& calibration) {
  const auto text = [](const char* format, auto... values) {
    std::array<char, 256> line{};
    std::snprintf(line.data(), line.size(), format, values...);
    return std::string(line.data());
  };
  std::string all = "# simulated: the exchange; measured here: computing, and what software takes for a message\n";
  for (const Json& e : calibration)
    all += text("# %s of %d ranks over %s, %.0f bytes: measured %.1f us, simulated %.1f us, %+.0f %%%s\n",
                e.at("calibrated").get<bool>() ? "calibrated on an exchange" : "checked on one",
                static_cast<int>(whole(e.at("ranks"))), e.at("transport").get<std::string>().c_str(),
                e.at("message_bytes").get<double>(), e.at("measured_us").get<double>(),
                e.at("simulated_us").get<double>(), 100 * e.at("error").get<double>(),
                e.at("oversubscribed").get<bool>() ? " (oversubscribed: proves nothing)" : "");
  std::string subject;
  for (const Json& row : events) {
    if (!is_event(row, "measurement") || !row.value("simulated", false)) continue;
    const std::string own = row.at("cluster").get<std::string>() + ", " + row.at("ranks").dump() + " ranks, " +
                            row.at("model").get<std::string>() + ", simulated";
    if (own != subject)
      all += "\n" + own + "\n" +
             text("%-64s%6s%6s%12s%12s%12s%12s%10s\n", "layer", "group", "batch", "compute us", "exchange us",
                  "exposed us", "step us", "samples");
    subject = own;
    all += text("%-64s%6ld%6ld%12.0f%12.1f%12.1f%12.0f%10.1f\n", row.at("layer").get<std::string>().c_str(),
                whole(row.at("group")), whole(row.at("batch_per_rank")), row.at("compute_us").get<double>(),
                row.at("exchange_us").get<double>(), row.at("exposed_us").get<double>(),
                row.at("time_us").get<double>(), row.at("effective_batch").get<double>());
  }
  return all;
}

}  // namespace allnorm::launch::scale
