#include "launch/bench/plan.hpp"

#include <algorithm>
#include <charconv>
#include <string_view>

#include <boost/program_options/value_semantic.hpp>
#include <boost/program_options/variables_map.hpp>

#include "launch/bench/models.hpp"
#include "launch/help.hpp"
#include "src/attributes.hpp"

namespace allnorm::launch::bench {

namespace po = boost::program_options;

namespace {

constexpr std::string_view default_layer = "batch_norm", default_shape = "8,64,56,56";
constexpr std::int64_t most = 1'000'000;

// The words behind the options, as they were typed.
struct Words {
  std::vector<std::string> layers{}, shapes{};
  std::string dtype = "f32", layout = "channels_first";
  std::int64_t batch = 1, rotate = 1;
  int check = 1;
};

po::options_description describe(Plan& plan, Words& words) {
  po::options_description options("Options");
  auto add = options.add_options();
  add("layer", po::value(&words.layers)->value_name("NAME[:attr=value...]"),
      "what is timed; once for each layer, or all: every layer of activations (batch_norm)");
  add("shape", po::value(&words.shapes)->value_name("N,C,H,W"),
      "the input of each rank, with any number of axes; once for each (8,64,56,56)");
  add("model", po::value(&plan.model)->value_name("NAME"),
      "in place of --shape: all normalization layers of resnet50 or another, or those of FILE.json, and their sum");
  add("batch-per-rank", po::value(&words.batch)->value_name("B"), "with --model: samples of each rank (1)");
  add("dtype", po::value(&words.dtype)->value_name("TYPE"), "f64, f32, f16 or bf16 (f32)");
  add("layout", po::value(&words.layout)->value_name("ORDER"), "channels_first or channels_last (channels_first)");
  add("iterations,n", po::value(&plan.iterations)->value_name("I"), "-n: calls that are timed (20)");
  add("warm-up,w", po::value(&plan.warm_up)->value_name("I"), "-w: calls before them (5)");
  add("rotate", po::value(&words.rotate)->value_name("S"),
      "sets of data that calls take in turn (1; on a GPU as many as fill its L2 cache four times, at most 1024)");
  add("check,c", po::value(&words.check)->value_name("0|1"),
      "-c: compare a first call's results with the float64 reference (1 up to 2^20 values a rank, else 0)");
  add("json", po::value(&plan.json)->value_name("F.jsonl"), "write what is printed, one JSON object a line");
  add("csv", po::value(&plan.csv)->value_name("F.csv"), "write the table, comma-separated");
  add("compare", po::value(&plan.compare)->value_name("BASE.jsonl"),
      "an earlier run's --json: lines of both are compared, and one that is slower now is exit code 1");
  add("tolerance", po::value(&plan.tolerance)->value_name("R"), "with --compare: 0.25 is 25 % slower (0.25)");
  return options;
}

void in_range(std::int64_t value, std::int64_t least, std::string_view option) {
  expect(value >= least && value <= most, Code::invalid_argument, [&] {
    return std::string(option) + " is " + std::to_string(value) + ", must be " + std::to_string(least) + " to " +
           std::to_string(most);
  });
}

Shape parse_shape(std::string_view text) {
  std::vector<std::int64_t> extents;
  const char *at = text.data(), *const end = at + text.size();
  for (bool more = true; more;) {
    std::int64_t extent = 0;
    const auto [rest, error] = std::from_chars(at, end, extent);
    more = error == std::errc{} && rest != end && *rest == ',';
    expect(error == std::errc{} && extent >= 1 && (more || rest == end), Code::invalid_argument, [&] {
      return "--shape is '" + std::string(text) + "', must be whole numbers of at least 1 with commas, as in " +
             std::string(default_shape);
    });
    extents.push_back(extent);
    at = more ? rest + 1 : rest;
  }
  return Shape(extents);
}

// Whether the row's input is what a network computes, not one of its weights.
bool is_of_activations(const Row& row) { return !row.statistics.has(Axis::row); }

std::vector<std::string> layer_texts(const std::vector<std::string>& given) {
  std::vector<std::string> texts;
  const auto add = [&](std::string_view text) {  // once: a model's sum is of all lines of its layer
    if (std::find(texts.begin(), texts.end(), text) == texts.end()) texts.emplace_back(text);
  };
  for (const std::string& text : given) {
    if (text != "all") add(text);
    for (const Row& row : catalogue())
      if (text == "all" && is_of_activations(row)) add(row.name);
  }
  if (texts.empty()) texts.emplace_back(default_layer);
  return texts;
}

void add_cases(Plan& plan, const Words& words) {
  std::vector<std::pair<Shape, std::int64_t>> shapes;  // and how often
  if (plan.model.empty()) {
    for (const std::string& text : words.shapes) shapes.emplace_back(parse_shape(text), 1);
    if (shapes.empty()) shapes.emplace_back(parse_shape(default_shape), 1);
  } else {
    const Model model = read_model(plan.model);
    plan.model = model.name;
    for (const ModelLayer& layer : model.layers) {
      std::vector<std::int64_t> extents{words.batch, layer.channels};
      extents.insert(extents.end(), layer.space.begin(), layer.space.end());
      shapes.emplace_back(Shape(extents), layer.count);
    }
  }
  for (const std::string& text : layer_texts(words.layers)) {
    Layer layer = parse_layer(text);
    if (!plan.ranks.nonfinite.empty() && layer.row->attribute("nonfinite") != nullptr &&
        text.find(":nonfinite=") == text.npos)
      layer.set("nonfinite", plan.ranks.nonfinite);
    layer.check();
    for (const auto& [shape, count] : shapes) {
      expect(shape.rank() >= (layer.row->by_trailing() ? 1 : 2), Code::invalid_argument, [&] {
        return "--shape is " + to_string(shape) + ", must have a channel axis for " + std::string(layer.row->name);
      });
      expect(layer.row->vectors() == nullptr || shape.rank() == 2, Code::invalid_argument, [&] {
        return "--shape is " + to_string(shape) + ", must have 2 axes for " + std::string(layer.row->name);
      });
      layer.shape_of({}, shape);  // groups, normalized_shape
      plan.cases.push_back({layer, text, shape, count});
    }
  }
}

}  // namespace

po::options_description describe_bench() {
  Plan plan;
  Words words;
  return describe(plan, words);  // for its text; nothing is parsed into them
}

Plan read_plan(const Arguments& arguments) {
  Plan plan;
  Words words;
  po::options_description all = describe(plan, words);
  all.add(launch::describe(plan.ranks));
  const po::variables_map given = parse_options(arguments, all);
  in_range(plan.iterations, 1, "--iterations");
  in_range(plan.warm_up, 0, "--warm-up");
  in_range(words.batch, 1, "--batch-per-rank");
  in_range(words.rotate, 1, "--rotate");
  expect(words.check == 0 || words.check == 1, Code::invalid_argument,
         [&] { return "--check is " + std::to_string(words.check) + ", must be 0 or 1"; });
  if (given.count("check") > 0) plan.check = words.check == 1;
  if (given.count("rotate") > 0) plan.rotate = words.rotate;
  expect(plan.tolerance >= 0 && plan.tolerance <= 1e6, Code::invalid_argument,
         [&] { return "--tolerance is " + attributes::text_of(plan.tolerance) + ", must be 0 to 1e6"; });
  expect(given.count("tolerance") == 0 || !plan.compare.empty(), Code::invalid_argument,
         "--tolerance is given, must be with --compare");
  expect(plan.model.empty() || words.shapes.empty(), Code::invalid_argument,
         "--shape is given with --model, must be one of them");
  expect(!plan.model.empty() || given.count("batch-per-rank") == 0, Code::invalid_argument,
         "--batch-per-rank is given, must be with --model: a shape has its samples");
  plan.dtype = parse_dtype(words.dtype);
  expect(words.layout == "channels_first" || words.layout == "channels_last", Code::invalid_argument,
         [&] { return "--layout is '" + words.layout + "', must be channels_first or channels_last"; });
  plan.order = words.layout == "channels_last" ? Order::channels_last : Order::channels_first;
  check(plan.ranks);
  add_cases(plan, words);
  return plan;
}

}  // namespace allnorm::launch::bench
