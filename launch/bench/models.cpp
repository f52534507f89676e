#include "launch/bench/models.hpp"

#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "allnorm/error.hpp"
#include "allnorm/tensor.hpp"
#include "launch/files/input_file.hpp"
#include "launch/installed.hpp"
#include "src/nearest.hpp"

namespace allnorm::launch::bench {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

std::string folder() { return data_folder("models", ALLNORM_MODELS); }

std::int64_t extent(const Json& value, const std::string& path, const std::string& what) {
  if (!value.is_number_integer() || value.get<std::int64_t>() < 1)
    bad_file(path, what + " is " + value.dump() + ", must be a whole number of at least 1");
  return value.get<std::int64_t>();
}

Model model_of(const Json& json, const std::string& path, const std::string& name) {
  if (!json.is_object() || !json.contains("layers") || !json["layers"].is_array() || json["layers"].empty())
    bad_file(path, "is no model, must have a list \"layers\" with at least one");
  const Json source = json.value("source", Json(""));
  Model model{name, source.is_string() ? source.get<std::string>() : source.dump(), {}};
  for (const Json& layer : json["layers"]) {
    if (!layer.is_object() || !layer.contains("channels") || !layer.value("space", Json::array()).is_array())
      bad_file(path, "has the layer " + printable(layer.dump()) +
                         ", must be an object with channels, and with a list of extents where it has a space");
    ModelLayer& made = model.layers.emplace_back();
    made.channels = extent(layer["channels"], path, "channels");
    made.count = extent(layer.value("count", Json(1)), path, "count");
    for (const Json& one : layer.value("space", Json::array()))
      made.space.push_back(extent(one, path, "an extent of space"));
    if (made.space.size() + 2 > Shape::max_rank)
      bad_file(path, "has a layer with " + std::to_string(made.space.size()) + " axes of space, must have at most " +
                         std::to_string(Shape::max_rank - 2));
  }
  return model;
}

}  // namespace

std::vector<std::string> known_models() { return json_names(folder()); }

Model read_model(const std::string& name) {
  const bool is_file = fs::path(name).extension() == ".json";
  if (!is_file) {
    const auto names = known_models();
    std::string known;
    for (const std::string& one : names) known += (known.empty() ? "one of " : "") + one + ", ";
    expect(std::find(names.begin(), names.end(), name) != names.end(), Code::invalid_argument, [&] {
      return "--model is '" + name + "', must be " + known + (known.empty() ? "" : "or ") +
             "a file of layers FILE.json" +
             did_you_mean(name, names, [](const std::string& one) { return std::string_view(one); });
    });
  }
  constexpr std::uint64_t most_bytes = 1 << 20;
  const std::string path = is_file ? name : folder() + "/" + name + ".json";
  const auto bytes = read_file(path, most_bytes);
  const auto* const text = reinterpret_cast<const char*>(bytes.data());
  const Json json = Json::parse(text, text + bytes.size(), nullptr, false);
  return model_of(json, path, is_file ? fs::path(name).stem().string() : name);
}

}  // namespace allnorm::launch::bench
