// The layers that `allnorm train` compares.
#include "launch/train/norm_choice.hpp"

#include <algorithm>

#include "allnorm/error.hpp"

namespace allnorm::launch::train {
namespace {

/// Rows of weights whose papers use them with a norm behind the convolution; the second not without: at the rate of
/// the others its gains diverge.
constexpr std::array<std::string_view, 2> pairs{"weight_norm+mean_only_batch_norm",
                                                "weight_standardization+group_norm"};
constexpr std::string_view never_alone = "weight_standardization";

bool begins_a_name(std::string_view text, std::size_t at) {
  return at < text.size() && !(text[at] >= '0' && text[at] <= '9');
}

/// Cuts at every `mark` that a name follows: within an attribute's value a digit does.
std::vector<std::string> cut(std::string_view text, char mark) {
  std::vector<std::string> parts;
  std::size_t from = 0;
  for (std::size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && !(text[i] == mark && (i + 1 == text.size() || begins_a_name(text, i + 1)))) continue;
    parts.emplace_back(text.substr(from, i - from));
    from = i + 1;
  }
  return parts;
}

bool is_of_weights(const Row& row) { return row.statistics.has(Axis::row); }

/// What the row needs with every call is an activation, or what a convolution has.
bool needs_input_alone(const Row& row) {
  return std::none_of(row.tensors.begin(), row.tensors.end(), [](const TensorSpec& tensor) {
    switch (tensor.role) {
      case TensorRole::map:
      case TensorRole::labels:
      case TensorRole::mixture:
      case TensorRole::style:
      case TensorRole::vectors:
      case TensorRole::table:
        return true;
      case TensorRole::activation:
      case TensorRole::parameter:
        return tensor.required != nullptr;
      default:
        return false;
    }
  });
}

std::string all_norms() {
  std::string list;
  for (const Row& row : catalogue())
    if (needs_input_alone(row) && row.name != never_alone) list.append(row.name).append(",");
  for (const std::string_view pair : pairs) list.append(pair).append(",");
  list.pop_back();
  return list;
}

/// Names of the attributes in "NAME[:attr=value...]".
std::vector<std::string> given_in(const std::string& text) {
  std::vector<std::string> names;
  for (std::size_t at = text.find(':'); at != std::string::npos; at = text.find(':', at + 1))
    names.push_back(text.substr(at + 1, text.find('=', at) - at - 1));
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

void check_part(const std::string& text, const Layer& layer, const std::vector<std::string>& given) {
  const Row& row = *layer.row;
  expect(needs_input_alone(row), Code::invalid_argument, [&] {
    return "--norm has " + std::string(row.name) + ", must have layers that need no more than their input";
  });
  for (const std::string_view own : network_attributes)
    expect(std::find(given.begin(), given.end(), own) == given.end(), Code::invalid_argument,
           [&] { return "--norm has " + text + ", must leave " + std::string(own) + " to the network"; });
  const Axes statistics = layer.statistics();
  expect(layer.options.sync.ranks == Sync::none || !(statistics.has(Axis::sample) || statistics.has(Axis::leading)),
         Code::invalid_argument, [&] {
           return "--norm has " + text + ", must have sync=none: ranks hold samples of their own, and " +
                  std::string(row.name) + " has statistics of each sample";
         });
}

NormChoice parse_choice(const std::string& text) {
  NormChoice choice{text};
  for (const std::string& part : cut(text, '+')) {
    const Layer layer = parse_layer(part);  // throws for what the catalogue does not know
    const auto given = given_in(part);
    check_part(part, layer, given);
    choice.meaning += std::string(layer.row->name);
    for (const std::string& name : given)
      choice.meaning += ":" + name + "=" + layer.row->attribute(name)->get(layer.options);
    choice.meaning += "+";
    auto& place = is_of_weights(*layer.row) ? choice.layers.weights : choice.layers.norm;
    expect(!place, Code::invalid_argument, [&] {
      return "--norm has " + text + ", must have at most one layer of weights and one of what the convolution gives";
    });
    place = layer;
    if (!is_of_weights(*layer.row)) choice.attributes = given;
  }
  return choice;
}

}  // namespace

const NormOptions& Layers::options() const noexcept {
  static const NormOptions none{};
  return norm ? norm->options : none;
}

bool NormChoice::sets(std::string_view attribute) const {
  return std::find(attributes.begin(), attributes.end(), attribute) != attributes.end();
}

std::vector<NormChoice> parse_norms(std::string_view list) {
  std::vector<NormChoice> choices;
  for (const std::string& text : cut(list == "all" ? all_norms() : std::string(list), ',')) {
    NormChoice choice = parse_choice(text);
    for (const NormChoice& other : choices)
      expect(other.meaning != choice.meaning, Code::invalid_argument,
             [&] { return "--norm has " + other.label + " and " + text + ", must have the same layers once"; });
    choices.push_back(std::move(choice));
  }
  return choices;
}

Layers layers_of(const NormChoice& choice, std::int64_t batch, std::int64_t calls, std::int64_t updates) {
  Layers layers = choice.layers;
  if (!layers.norm) return layers;
  Layer& layer = *layers.norm;
  NormOptions& options = layer.options;
  const auto unless_given = [&](std::string_view attribute, auto& value, auto ours) {
    if (!choice.sets(attribute)) value = ours;
  };
  if (layer.row->statistics.has(Axis::group)) unless_given("groups", options.groups, 4);
  if (layer.row->attribute("group_size") != nullptr)
    unless_given("group_size", options.group_size, 8);  // divides the channels of all blocks
  if (layer.has_state()) {
    unless_given("eps", options.eps, 1e-5);
    unless_given("momentum", options.momentum, 0.02);
  }
  const auto share = [&](double part) {
    return static_cast<std::int64_t>(part * static_cast<double>(updates * calls));
  };
  if (options.renorm) {
    unless_given("variant", options.variant, RenormVariant::var);
    const std::int64_t start = share(0.04);  // and at least one call later the end, however short the training is
    if (!choice.sets("r_max")) options.r_max_ramp = {{start, 1}, {std::max(start + 1, share(0.3)), 1.5}};
    if (!choice.sets("d_max")) options.d_max_ramp = {{start, 0}, {std::max(start + 1, share(0.2)), 0.5}};
  }
  if (options.minibatches > 1 && !choice.sets("minibatches")) options.minibatches = calls;
  expect(calls % options.minibatches == 0, Code::invalid_argument, [&] {
    return "minibatches of " + choice.label + " is " + std::to_string(options.minibatches) +
           ", must divide --accumulate " + std::to_string(calls) + ": a batch shares its weights";
  });
  if (layer.row->name == "cross_iteration_batch_norm") unless_given("window", options.window, batch == 1 ? 8 : 4);
  if (options.window > 1) {
    unless_given("fill_in_burn_in", options.fill_in_burn_in, true);
    unless_given("running_source", options.running_source, RunningSource::window);
  }
  // Statistics of several calls need weights that move slowly: plain BN comes first.
  if (options.window > 1 || options.minibatches > 1)
    unless_given("burn_in", options.burn_in, share(0.5) / options.minibatches);
  layer.check();
  return layers;
}

}  // namespace allnorm::launch::train
