// What follows from a row: its lookups, a layer made of it, and shapes as text.
#include <algorithm>
#include <cstddef>
#include <span>
#include <string>

#include "allnorm/catalogue.hpp"
#include "allnorm/sizes.hpp"
#include "kernels/steps.hpp"
#include "src/attributes.hpp"
#include "src/nearest.hpp"

namespace allnorm {

namespace {

template <class Spec>
const Spec* named(std::span<const Spec> all, std::string_view name) noexcept {
  const auto found = std::find_if(all.begin(), all.end(), [&](const Spec& spec) { return spec.name == name; });
  return found == all.end() ? nullptr : &*found;
}

}  // namespace

const TensorSpec* Row::tensor(std::string_view wanted) const noexcept { return named(tensors, wanted); }
const OutputSpec* Row::output(std::string_view wanted) const noexcept { return named(outputs, wanted); }
const Attribute* Row::attribute(std::string_view wanted) const noexcept { return named(attributes, wanted); }

const TensorSpec* Row::gradient(std::string_view output) const noexcept {
  constexpr std::string_view prefix = "grad_";
  return output.starts_with(prefix) ? tensor(output.substr(prefix.size())) : nullptr;
}

const TensorSpec* Row::state(std::string_view output) const noexcept {
  const TensorSpec* found = tensor(output);
  return found != nullptr && found->is_state() ? found : nullptr;
}

const TensorSpec* Row::vectors() const noexcept {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [](const TensorSpec& t) { return t.role == TensorRole::vectors; });
  return found == tensors.end() ? nullptr : &*found;
}

std::string shape_text(Axes axes) {
  if (axes == every_axis) return "like input";
  if (axes.has(Axis::row)) return "(rows)";
  if (axes.has(Axis::statistic)) return "(3)";
  if (axes.has(Axis::partner)) return "(G,g,g)";
  if (axes.has(Axis::leading)) return "leading axes";
  if (axes.has(Axis::trailing)) return "normalized_shape";
  const bool space = axes.has(Axis::space);
  std::string text;
  const auto add = [&](bool kept, const char* extent) {
    if (kept || space) text += (text.empty() ? "" : ",") + std::string(kept ? extent : "1");
  };
  add(axes.has(Axis::sample), "N");
  add(axes.has(Axis::channel) || axes.has(Axis::group), axes.has(Axis::channel) ? "C" : "G");
  if (space) text += ",space";
  return text.empty() ? "scalar" : "(" + text + ")";
}

std::string shape_text(const TensorSpec& tensor) {
  switch (tensor.role) {
    case TensorRole::conv_input:
      return "(N,Ci,space)";
    case TensorRole::conv_weight:
      return "(C,Ci/groups,k...)";
    case TensorRole::style:
      return "(N,C,any space)";
    case TensorRole::mixture:
      return "(N) or (N,K)";
    case TensorRole::table:
      return "(K,C)";
    case TensorRole::vectors:
      return "(M,K)";
    default:
      return shape_text(tensor.axes);
  }
}

std::size_t family_of(const Row& row) noexcept {
  const std::span<const Row> rows = catalogue();
  const auto outer = std::find_if(rows.begin(), rows.end(), [&](const Row& r) {
    return r.name == row.name && r.attributes.data() == row.attributes.data();
  });
  const Row& own = outer == rows.end() ? row : *outer;
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const Row& r) {
    return r.attributes.data() == own.attributes.data() && r.statistics == own.statistics && r.centred == own.centred;
  });
  return static_cast<std::size_t>(found - rows.begin());
}

namespace {

const Row& row_named(std::string_view name) {
  std::string known;
  for (const Row& row : catalogue()) {
    if (row.name == name) return row;
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  fail(Code::invalid_argument, "layer is '" + std::string(name) + "', must be one of " + known +
                                   did_you_mean(name, catalogue(), [](const Row& row) { return row.name; }));
}

}  // namespace

Layer::Layer(const Row& its_row) : row(&its_row) {
  for (const Default& value : row->defaults) set(value.attribute, value.value);
}
Layer::Layer(std::string_view name) : Layer(row_named(name)) {}

Layer& Layer::set(std::string_view attribute, std::string_view value) {
  if (const Attribute* found = row->attribute(attribute)) {
    found->set(options, attribute, value);
    return *this;
  }
  std::string known;
  for (const Attribute& listed : row->attributes) known += (known.empty() ? "" : ", ") + std::string(listed.name);
  fail(Code::invalid_argument,
       "attribute of " + std::string(row->name) + " is '" + std::string(attribute) + "', must be one of " + known +
           did_you_mean(attribute, row->attributes, [](const Attribute& candidate) { return candidate.name; }));
}

void Layer::check() const {
  expect(attributes::fits_a_header(*row), Code::invalid_argument, [&] {
    return std::string(row->name) + " has too many attributes that ranks must agree on, must have at most " +
           std::to_string(Header::attributes_size);
  });
  // Options that were set as values, not through `set`, meet the same ranges.
  NormOptions copy = options;
  for (const Attribute& attribute : row->attributes)
    if (const std::string value = attribute.get(options); !value.empty()) attribute.set(copy, attribute.name, value);
  if (row->check != nullptr) row->check(options);
  expect(product(options.normalized_shape).has_value(), Code::invalid_argument,
         "attribute normalized_shape has more than 2^63-1 elements, must have at most that");
  expect(options.training || has_state() || row->attribute("training") == nullptr, Code::invalid_argument, [&] {
    return "attribute training of " + std::string(row->name) +
           " is false, must be true where no running statistics are kept";
  });
  // What the row does not list must be as if it did not exist.
  for (const Row& other : catalogue())
    for (const Attribute& attribute : other.attributes)
      expect(row->attribute(attribute.name) != nullptr || attribute.get(options) == attribute.get({}),
             Code::invalid_argument,
             [&] { return std::string(attribute.name) + " is set, must not be for " + std::string(row->name); });
  for (const Ramp* ramp : {&options.r_max_ramp, &options.d_max_ramp}) {
    const double least = ramp == &options.r_max_ramp ? 1 : 0;
    for (std::size_t i = 0; i < ramp->size(); ++i)
      expect((*ramp)[i].value >= least && (i == 0 || (*ramp)[i - 1].call < (*ramp)[i].call), Code::invalid_argument,
             [&] {
               return "point " + std::to_string(i) +
                      " of a renorm schedule is out of order or out of range: calls must "
                      "ascend, r_max be at least 1 and d_max at least 0";
             });
  }
}

bool Layer::has(const OutputSpec& output) const {
  const TensorSpec* state = row->state(output.name);
  return (output.exists == nullptr || output.exists(options)) && (state == nullptr || has(*state));
}

bool Layer::has_state() const noexcept {
  return std::any_of(row->tensors.begin(), row->tensors.end(),
                     [&](const auto& t) { return t.role == TensorRole::state && has(t); });
}

double Layer::sigma(double var) const noexcept { return row->scaled ? formulas::sigma(options, var) : 1; }

void write_layer(const Layer& layer, Header& header) {
  header.set(Field::kind, std::uint64_t{family_of(*layer.row)});
  auto* word = header.attributes.data();
  for (const Attribute& attribute : layer.row->attributes)
    if (attribute.agreement == Agreement::same) *word++ = attribute.word(layer.options);
}

Layer parse_layer(std::string_view text) {
  const auto end = std::min(text.find(':'), text.size());
  Layer layer(text.substr(0, end));
  std::vector<std::string_view> set;
  for (std::string_view rest = text.substr(end); !rest.empty();) {
    rest.remove_prefix(1);  // the colon
    const auto stop = std::min(rest.find(':'), rest.size());
    const std::string_view pair = rest.substr(0, stop);
    const auto equals = pair.find('=');
    expect(equals != pair.npos, Code::invalid_argument, [&] {
      return "attribute of " + std::string(layer.row->name) + " is '" + std::string(pair) + "', must be NAME=VALUE";
    });
    const std::string_view name = pair.substr(0, equals);
    expect(std::find(set.begin(), set.end(), name) == set.end(), Code::invalid_argument,
           [&] { return "attribute " + std::string(name) + " is set twice, must be set once"; });
    layer.set(name, pair.substr(equals + 1));
    set.push_back(name);
    rest.remove_prefix(stop);
  }
  return layer;
}

double ramp_value(const Ramp& ramp, std::int64_t call, double constant) noexcept {
  return steps::ramp_value({ramp.data(), static_cast<std::int64_t>(ramp.size())}, call, constant);
}

}  // namespace allnorm
