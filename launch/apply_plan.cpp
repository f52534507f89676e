// `allnorm apply`: from words to a plan, and every check that needs no file.
#include <algorithm>
#include <array>
#include <utility>

#include <boost/program_options/value_semantic.hpp>

#include "allnorm/error.hpp"
#include "launch/apply.hpp"
#include "launch/choice.hpp"
#include "launch/help.hpp"
#include "launch/nonfinite.hpp"
#include "src/nearest.hpp"

namespace allnorm::launch {

namespace po = boost::program_options;

namespace {

constexpr TensorSpec common_tensors[] = {
    {"input", TensorRole::activation, every_axis, "x"},
    {"grad_output", TensorRole::activation, every_axis, "asks for the gradients"},
};

struct ShortForm {
  const char *option, *tensor, *help;
};
constexpr ShortForm short_forms[] = {
    {"input", "input", "short for --tensor input=FILE"},
    {"weight", "weight", "short for --tensor weight=FILE"},
    {"bias", "bias", "short for --tensor bias=FILE"},
    {"grad-output", "grad_output", "short for --tensor grad_output=FILE"},
};

constexpr std::int64_t most_steps = 1'000'000;

constexpr std::pair<std::string_view, Order> layouts[] = {{"channels_first", Order::channels_first},
                                                          {"channels_last", Order::channels_last}};
constexpr std::pair<std::string_view, Split> splits[] = {
    {"batch", Split::batch}, {"space", Split::space}, {"channels", Split::channels}};

// An option that is one of the table's words, and what a word of it stands for.
template <class Value, std::size_t Size>
Choice* choice(const char* option, std::string* word, const std::pair<std::string_view, Value> (&table)[Size]) {
  std::vector<std::string> words;
  for (const auto& row : table) words.emplace_back(row.first);
  return new Choice(option, word, words);
}
template <class Value, std::size_t Size>
Value meaning(std::string_view word, const std::pair<std::string_view, Value> (&table)[Size]) {
  return std::find_if(std::begin(table), std::end(table), [&](const auto& row) { return row.first == word; })->second;
}

// The words behind the options, as they were typed.
struct Words {
  std::vector<std::string> tensors{}, sets{};
  std::array<std::string, std::size(short_forms)> shorts{};
  std::string out{}, dtype{}, layout = "channels_first", split{}, load_state{}, save_state{};
  std::int64_t steps = 1;
};

po::options_description describe(Words& words) {
  po::options_description options("Options");
  options.add_options()("tensor", po::value(&words.tensors)->value_name("NAME=FILE.npy"),
                        "a tensor to read; any number");
  for (std::size_t i = 0; i < std::size(short_forms); ++i)
    options.add_options()(short_forms[i].option, po::value(&words.shorts[i])->value_name("FILE.npy"),
                          short_forms[i].help);
  options.add_options()("set", po::value(&words.sets)->value_name("NAME=VALUE"),
                        "an attribute of the layer; any number")(
      "out", po::value(&words.out)->value_name("DIR"), "where the results are written; made if missing; required")(
      "dtype", (new Choice("dtype", &words.dtype, {"f64", "f32", "f16", "bf16"}))->value_name("TYPE"),
      "f64, f32, f16 or bf16 (the input file's type)")(
      "layout", choice("layout", &words.layout, layouts)->value_name("ORDER"),
      "channels_first: files are N, C, space...; channels_last: N, space..., C (channels_first)")(
      "steps", po::value(&words.steps)->value_name("S"), "calls in a row on one layer object (1)")(
      "split", choice("split", &words.split, splits)->value_name("AXIS"),
      "batch, space or channels: cut that axis of the files over the ranks, in order, the first ranks one slice more")(
      "load-state", po::value(&words.load_state)->value_name("F.safetensors"),
      "the layer's state before the first call")(
      "drop-window",
      "with --load-state: window and open batch start anew, so that a state of another number of ranks is accepted")(
      "save-state", po::value(&words.save_state)->value_name("F.safetensors"), "the layer's state after the last call");
  return options;
}

std::pair<std::string, std::string> halves(std::string_view option, const std::string& text) {
  const auto equals = text.find('=');
  expect(equals != text.npos && equals > 0 && equals + 1 < text.size(), Code::invalid_argument, [&] {
    return std::string(option) + " is '" + text + "', must be NAME=" + (option == "--set" ? "VALUE" : "FILE.npy");
  });
  return {text.substr(0, equals), text.substr(equals + 1)};
}

void add_tensor(ApplyPlan& plan, const std::string& name, const std::string& file) {
  std::string known;
  bool found = false;
  for (const TensorSpec& spec : tensors_of(*plan.layer.row)) {
    found |= spec.name == name;
    known += (known.empty() ? "" : ", ") + std::string(spec.name);
  }
  expect(found, Code::invalid_argument, [&] {
    return "tensor of " + std::string(plan.layer.row->name) + " is '" + name + "', must be one of " + known +
           did_you_mean(name, tensors_of(*plan.layer.row), [](const TensorSpec& spec) { return spec.name; });
  });
  expect(plan.tensors.emplace(name, file).second, Code::invalid_argument,
         [&] { return "tensor " + name + " is given twice, must be given once"; });
}

// Whether a slice of that axis is a part of the same sums, or may be: which axes are trailing ones the input says too.
bool reduces(const Layer& layer, Split split) {
  const Axes statistics = layer.statistics();
  switch (split) {
    case Split::batch:
      return !statistics.has(Axis::sample) &&
             !(statistics.has(Axis::leading) && layer.options.normalized_shape.empty());
    case Split::channels:
      return !statistics.has(Axis::channel);
    case Split::space:
      return !statistics.has(Axis::space);
    case Split::none:
      break;
  }
  return true;
}

void check_tensors(const ApplyPlan& plan) {
  const std::string name(plan.layer.row->name);
  expect(plan.gives("input"), Code::invalid_argument, "tensor input is missing, must be given (--input FILE.npy)");
  for (const TensorSpec& tensor : plan.layer.row->tensors) {
    const std::string own(tensor.name);
    expect(plan.gives(own) || tensor.required == nullptr || !tensor.required(plan.layer.options),
           Code::invalid_argument, [&] {
             return "tensor " + own + " of " + name + " is missing, must be given " + std::string(tensor.required_for);
           });
    expect(!plan.gives(own) || plan.layer.has(tensor), Code::invalid_argument,
           [&] { return "tensor of " + name + " is " + own + ", must be " + std::string(tensor.instead); });
  }
}

// Of what makes no partition, and nothing of which ranks exchange: axes that are read whole stay whole.
void check_whole(const ApplyPlan& plan, std::string_view text) {
  const Row& row = *plan.layer.row;
  const std::string name(row.name), is = "--split is " + std::string(text) + ", must be batch";
  expect(row.vectors() == nullptr || plan.split == Split::none || plan.split == Split::batch, Code::invalid_argument,
         [&] { return is + ": " + name + " compares whole rows"; });
  expect(row.operation != OperationKind::neighbours || plan.split != Split::channels, Code::invalid_argument,
         [&] { return is + " or space: the channels of " + name + " read their neighbours"; });
  expect(!row.statistics.has(Axis::row) || plan.split != Split::channels, Code::invalid_argument,
         [&] { return is + " or space: " + name + " has no channel axis"; });
}

void check_split(const ApplyPlan& plan, std::string_view text) {
  const Row& row = *plan.layer.row;
  check_whole(plan, text);
  expect(plan.layer.options.sync.ranks == Sync::none || reduces(plan.layer, plan.split), Code::invalid_argument, [&] {
    std::string with;  // what the axes follow from
    if (const Attribute* by = row.attribute(row.statistics_by); by != nullptr)
      with = " with " + std::string(by->name) + "=" + by->get(plan.layer.options);
    return "--split is " + std::string(text) + ", must be an axis that " + std::string(row.name) + with +
           " reduces over, or sync none";
  });
  // A part of the channels holds parts of the convolution's groups, so that its number of groups would be another.
  expect(plan.split != Split::channels || !plan.compensates() || plan.layer.options.convolution.groups == 1,
         Code::invalid_argument, "--split is channels, must be batch for a convolution with conv_groups > 1");
}

}  // namespace

bool ApplyPlan::wants_gradients() const {
  const auto& specs = layer.row->tensors;
  return gives("grad_output") || std::any_of(specs.begin(), specs.end(), [this](const TensorSpec& spec) {
           return spec.role == TensorRole::gradient && gives(spec.name);
         });
}

std::vector<TensorSpec> tensors_of(const Row& row) {
  std::vector<TensorSpec> all(std::begin(common_tensors), std::end(common_tensors));
  all.insert(all.end(), row.tensors.begin(), row.tensors.end());
  return all;
}

po::options_description describe_apply() {
  Words words;
  return describe(words);  // for its text; nothing is parsed into `words`
}

ApplyPlan read_apply_plan(const Arguments& words) {
  expect(!words.empty() && !words[0].starts_with("-"), Code::invalid_argument, [] {
    std::string known;
    for (const Row& row : catalogue()) known += (known.empty() ? "" : ", ") + std::string(row.name);
    return "layer is missing, must follow apply and be one of " + known;
  });
  ApplyPlan plan(words[0]);
  Words typed;
  po::options_description options;
  options.add(describe(typed)).add(describe(plan.ranks));
  const auto values = parse_options(Arguments(words.begin() + 1, words.end()), options);

  for (const std::string& text : typed.tensors) {
    const auto [name, file] = halves("--tensor", text);
    add_tensor(plan, name, file);
  }
  for (std::size_t i = 0; i < std::size(short_forms); ++i)
    if (values.count(short_forms[i].option) > 0) add_tensor(plan, short_forms[i].tensor, typed.shorts[i]);
  std::vector<std::string> set;
  for (const std::string& text : typed.sets) {
    const auto [name, value] = halves("--set", text);
    expect(std::find(set.begin(), set.end(), name) == set.end(), Code::invalid_argument,
           [&] { return "attribute " + name + " is set twice, must be set once"; });
    plan.layer.set(name, value);
    set.push_back(name);
  }
  set_nonfinite(plan.ranks, std::find(set.begin(), set.end(), "nonfinite") != set.end(), plan.layer);
  plan.layer.check();

  expect(!typed.out.empty(), Code::invalid_argument, "--out is missing, must name the directory for the results");
  plan.out = typed.out;
  plan.load_state = typed.load_state;
  plan.save_state = typed.save_state;
  plan.drop_window = values.count("drop-window") > 0;
  expect(!plan.drop_window || !plan.load_state.empty(), Code::invalid_argument,
         "--drop-window is given alone, must come with --load-state");
  expect(!mentions(plan.load_state, "{step}") && !mentions(plan.save_state, "{step}"), Code::invalid_argument,
         "a state file's name has {step}, must have at most {rank}: a run has one state");
  if (values.count("dtype") > 0) plan.dtype = parse_dtype(typed.dtype);
  plan.order = meaning(typed.layout, layouts);
  if (values.count("split") > 0) plan.split = meaning(typed.split, splits);
  plan.steps = typed.steps;
  expect(plan.steps >= 1 && plan.steps <= most_steps, Code::invalid_argument, [&] {
    return "--steps is " + std::to_string(plan.steps) + ", must be 1 to " + std::to_string(most_steps) +
           ": the results of all steps are kept until the end";
  });

  check_tensors(plan);
  check_split(plan, typed.split);
  check(plan.ranks);
  if (const int ranks = expected_ranks(plan.ranks); ranks > 0) check_plan(plan, ranks);
  return plan;
}

void check_plan(const ApplyPlan& plan, int ranks) {
  if (ranks == 1) return;
  expect(plan.save_state.empty() || plan.layer.options.sync.ranks == Sync::world || mentions(plan.save_state, "{rank}"),
         Code::invalid_argument, [&] {
           return "--save-state is " + plan.save_state +
                  ", must contain {rank}: without sync=world every rank has its own";
         });
  if (plan.split == Split::none) return;
  for (const auto& [name, file] : plan.tensors)
    expect(!mentions(file, "{rank}"), Code::invalid_argument, [&, tensor = name, path = file] {
      return "tensor " + tensor + " is " + path + ", must not contain {rank} with --split, which cuts one file for all";
    });
}

bool mentions(std::string_view pattern, std::string_view placeholder) {
  return pattern.find(placeholder) != pattern.npos;
}

std::string expand(std::string_view pattern, int rank, std::int64_t step) {
  const std::pair<std::string_view, std::string> replacements[] = {{"{rank}", std::to_string(rank)},
                                                                   {"{step}", std::to_string(step)}};
  std::string text(pattern);
  for (const auto& [placeholder, number] : replacements)
    for (auto at = text.find(placeholder); at != text.npos; at = text.find(placeholder, at + number.size()))
      text.replace(at, placeholder.size(), number);
  return text;
}

}  // namespace allnorm::launch
