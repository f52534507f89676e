#include "launch/scale/clusters.hpp"

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "allnorm/error.hpp"
#include "launch/files/input_file.hpp"
#include "launch/installed.hpp"
#include "src/attributes.hpp"
#include "src/nearest.hpp"

namespace allnorm::launch::scale {

namespace {

namespace fs = std::filesystem;

std::string folder() { return data_folder("clusters", ALLNORM_CLUSTERS); }

struct Parameter {
  const char* name;
  double least;
  bool whole;
};
constexpr Parameter parameters[] = {
    {"ranks_per_node", 1, true}, {"node_latency_us", 0, false}, {"node_gb_s", 1e-3, false},
    {"nics_per_node", 1, true},  {"nic_gb_s", 1e-3, false},     {"network_latency_us", 0, false},
    {"nodes_per_leaf", 1, true}, {"leaf_latency_us", 0, false}, {"leaf_gb_s", 1e-3, false}};
constexpr double most = 1e9;

}  // namespace

std::vector<std::string> known_clusters() { return json_names(folder()); }

Cluster read_cluster(const std::string& name) {
  const bool is_file = name.find_first_of("./") != name.npos;
  if (!is_file) {
    const auto names = known_clusters();
    std::string known;
    for (const std::string& one : names) known += one + ", ";
    expect(std::find(names.begin(), names.end(), name) != names.end(), Code::invalid_argument, [&] {
      return "--cluster is '" + name + "', must be one of " + known + "or a file of parameters FILE.json" +
             did_you_mean(name, names, [](const std::string& one) { return std::string_view(one); });
    });
  }
  constexpr std::uint64_t most_bytes = 1 << 20;
  const std::string path = is_file ? name : folder() + "/" + name + ".json";
  const auto bytes = read_file(path, most_bytes);
  const auto* const text = reinterpret_cast<const char*>(bytes.data());
  const Json json = Json::parse(text, text + bytes.size(), nullptr, false);
  if (!json.is_object() || !json.value("parameters", Json()).is_object())
    bad_file(path, "is no cluster, must have an object \"parameters\"");
  Cluster cluster{is_file ? fs::path(name).stem().string() : name, {}, Json::object()};
  const Json title = json.value("title", Json(""));
  cluster.title = title.is_string() ? title.get<std::string>() : title.dump();
  for (const Parameter& parameter : parameters) {
    const Json one = json["parameters"].value(parameter.name, Json());
    const Json value = one.is_object() ? one.value("value", Json()) : one;
    const bool fits = value.is_number() && value.get<double>() >= parameter.least && value.get<double>() <= most &&
                      (!parameter.whole || value.is_number_integer());
    if (!fits)
      bad_file(path, std::string(parameter.name) + " is " + printable(value.dump()) + ", must be a " +
                         (parameter.whole ? "whole " : "") + "number of at least " +
                         attributes::text_of(parameter.least));
    cluster.parameters[parameter.name] = value;
  }
  return cluster;
}

}  // namespace allnorm::launch::scale
