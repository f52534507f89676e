// The table of normalizations: one row each, with its tensors, attributes, defaults and source. The program's command
// line, its help and its checks are made from the same rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "allnorm/axes.hpp"
#include "allnorm/options.hpp"
#include "allnorm/tensor.hpp"

namespace allnorm {

struct Header;  // allnorm/message.hpp

/// How a tensor is converted and cut over ranks.
enum class TensorRole : std::uint8_t {
  activation,  ///< shaped like the input, in its order and dtype
  parameter,
  map,          ///< a parameter of some of the input's axes, in its dtype
  gradient,     ///< of the loss by a statistic: "grad_" and its name; of backward alone, and ranks' add up
  state,        ///< running statistics
  counter,      ///< one integer
  conv_input,   ///< (N, Ci, space), in the input's order and dtype
  conv_weight,  ///< (C, Ci/groups, k...)
  labels,       ///< i64 (N): the row of the tables that each sample takes
  mixture,      ///< the same, or f32 or f64 (N, K): how much of each row
  style,        ///< (N, C, any space), in the input's order and dtype
  table,        ///< parameters (K, C), a row for each label; (C) where no labels are given
  vectors,      ///< parameters (M, K), compared with each row of an input (N, K): the output is (N, M)
};

/// Something that depends on a layer's options.
using Condition = bool (*)(const NormOptions&);

/// What a state's values must be, besides finite.
enum class Bound : std::uint8_t { none, not_negative, positive };

/// A tensor of a row: what it is, and when it exists.
struct TensorSpec {
  std::string_view name;            ///< of its slot
  TensorRole role;                  ///< how it is converted and cut
  Axes axes;                        ///< one value for each of their indices
  std::string_view help;            ///< one line, for people
  double otherwise = 0;             ///< stands for every value of a parameter or state that is not given
  Bound bound = Bound::none;        ///< of a state's values
  Condition exists = nullptr;       ///< null: always
  std::string_view instead{};       ///< for people: what there is where it does not exist
  Condition required = nullptr;     ///< null: never
  std::string_view required_for{};  ///< for people: where it is required
  std::optional<double> start{};    ///< where a parameter that is learned begins; null: at `otherwise`
  double added = 0;                 ///< to every value of a parameter that is given

  /// Kept from call to call, not given with one.
  constexpr bool is_state() const noexcept { return role == TensorRole::state || role == TensorRole::counter; }
  /// Given with a forward call.
  constexpr bool is_of_forward() const noexcept { return !is_state() && role != TensorRole::gradient; }
};

/// An output is a gradient ("grad_" and the name of a tensor, shaped like that), a state after the call (the name of a
/// tensor that is one), or a statistic: f64, over `axes`.
struct OutputSpec {
  std::string_view name;       ///< of its slot
  Axes axes;                   ///< of a statistic
  std::string_view help;       ///< one line, for people
  Condition exists = nullptr;  ///< null: always
};

/// An array's shape for people: "(N,G)", "like input", "normalized_shape".
std::string shape_text(Axes axes);
/// The same of a tensor, whose role may say more than its axes.
std::string shape_text(const TensorSpec& tensor);

/// What the ranks of a layer must have in common of an attribute.
enum class Agreement : std::uint8_t {
  same,     ///< its value: a word of every message's header
  by_call,  ///< its value at the call, which changes from call to call and has a field of its own in the header
  none,     ///< nothing: each rank has its own
};

/// One attribute, whole: how it is read from and written to text, and how a message carries it.
struct Attribute {
  std::string_view name;    ///< as users write it
  std::string_view values;  ///< for people: "true or false", "at least 1", "clamp or drop"
  std::string_view help;    ///< one line, for people
  /// Throws invalid_argument that names the attribute, the value and what it must be.
  void (*set)(NormOptions&, std::string_view name, std::string_view value);
  std::string (*get)(const NormOptions&);     ///< its value as text, which `set` reads
  std::uint64_t (*word)(const NormOptions&);  ///< equal where the values are
  std::string (*text)(std::uint64_t word);    ///< the value that a word stands for; null where it is a hash
  Agreement agreement = Agreement::same;      ///< what ranks must have in common
};

/// The value of an attribute in a row, as text, where it is not that of NormOptions{}.
struct Default {
  std::string_view attribute;  ///< its name
  std::string_view value;      ///< as Attribute::set reads it
};

/// What a row makes (allnorm/operation.hpp).
enum class OperationKind : std::uint8_t {
  norm,         ///< values by a mean and a variance of their set
  conditional,  ///< gamma and beta of each sample
  adaptive,     ///< those of a style
  maps,         ///< those of each value
  weight,       ///< a weight by its rows' lengths
  switchable,   ///< mixtures of the statistics of three norms
  neighbours,   ///< values by those of channels around
  cosine,       ///< rows by their angles with vectors
  whitening,    ///< the channels of a group decorrelated
};

/// One normalization: its tensors, attributes, defaults and source.
struct Row {
  std::string_view name;                  ///< as users write it
  std::string_view summary;               ///< one line
  std::string_view source;                ///< paper
  Axes statistics;                        ///< one mean and variance for each of their indices; see statistics_with
  std::span<const TensorSpec> tensors;    ///< optional ones, besides input and grad_output
  std::span<const Attribute> attributes;  ///< what can be set
  std::span<const Default> defaults;      ///< where they differ from NormOptions{}
  std::span<const OutputSpec> outputs;    ///< besides output and grad_input
  bool centred = true;                    ///< false: moments are about 0, the mean counts as 0
  OperationKind operation = OperationKind::norm;  ///< what it makes
  /// Throws invalid_argument for attributes that do not go together; null: all do.
  void (*check)(const NormOptions&) = nullptr;
  /// In place of `statistics` where they depend on an attribute; null: they do not.
  Axes (*statistics_with)(const NormOptions&) = nullptr;
  std::string_view statistics_by{};  ///< that attribute
  bool scaled = true;  ///< false: values are centred alone, the deviation counts as 1 and the variance as 0

  /// The tensor, output or attribute of that name; null where the row has none.
  const TensorSpec* tensor(std::string_view name) const noexcept;
  /// \copybrief tensor()
  const OutputSpec* output(std::string_view name) const noexcept;
  /// \copybrief tensor()
  const Attribute* attribute(std::string_view name) const noexcept;
  /// The tensor whose gradient the output of that name is, or which it is after the call; null where it is none.
  const TensorSpec* gradient(std::string_view output) const noexcept;
  /// \copybrief gradient()
  const TensorSpec* state(std::string_view output) const noexcept;
  /// The tensor of that role; null where the output is like the input.
  const TensorSpec* vectors() const noexcept;
  /// The input is (leading..., trailing...), or rows, as it lies, and not (N, C, space...).
  bool by_trailing() const noexcept {
    return statistics.has(Axis::leading) || statistics.has(Axis::trailing) || statistics.has(Axis::row);
  }
};

/// All rows, in the order of the documentation.
std::span<const Row> catalogue() noexcept;

/// The first row with the same statistics and attributes: rows of one family differ in defaults and in how gamma and
/// beta are given, and their states mean the same. Of a row with name and attributes of one of the catalogue, which is
/// the norm within that layer: that one's. The catalogue's size for a row that is not of it.
std::size_t family_of(const Row& row) noexcept;

/// A row with values for its attributes.
struct Layer {
  const Row* row = nullptr;  ///< borrowed
  NormOptions options{};     ///< the values

  /// A row with its defaults, borrowed: it may be one that the catalogue lacks.
  explicit Layer(const Row& row);
  explicit Layer(const Row&&) = delete;
  /// The row of that name with its defaults. Throws invalid_argument with the known names.
  explicit Layer(std::string_view name);
  /// Sets one attribute from text. Throws invalid_argument for an unknown attribute or a value out of its range.
  Layer& set(std::string_view attribute, std::string_view value);
  /// Checks what no single attribute can know. Throws invalid_argument.
  void check() const;
  /// The row's tensor, or output, exists with these options.
  bool has(const TensorSpec& tensor) const { return tensor.exists == nullptr || tensor.exists(options); }
  /// \copybrief has(const TensorSpec&) const
  bool has(const OutputSpec& output) const;
  /// A state exists with these options: running statistics are kept from call to call.
  bool has_state() const noexcept;
  /// One mean and variance for each of their indices.
  Axes statistics() const { return row->statistics_with != nullptr ? row->statistics_with(options) : row->statistics; }
  /// The shape of an array over `axes` of an input of that shape: their extents in its order, and where the space is
  /// among them 1 in place of N or C that is not. Throws invalid_argument where an attribute does not fit the shape,
  /// invalid_input where that has too few axes.
  Shape shape_of(Axes axes, const Shape& input) const;
  /// Whether an array over `axes` of an input of that shape may have the shape `given`: that of shape_of(), or for one
  /// value per row the input's with 1 in place of all other axes.
  bool fits(Axes axes, const Shape& given, const Shape& input) const;
  /// The axis of an input of that shape whose indices are its rows. Throws invalid_argument where there is no such axis
  /// and invalid_input for a scalar.
  int row_axis(const Shape& input) const;
  /// running_std (true) or running_var (false) is what the layer keeps.
  bool keeps_std() const noexcept { return options.keeps_std(); }
  /// What values of this variance are divided by, as eps and eps_place say.
  double sigma(double var) const noexcept;
};

/// Writes which family the layer is of, and of its attributes the words that ranks must agree on.
void write_layer(const Layer& layer, Header& header);

/// Reads "NAME[:attr=value…]", the form of `allnorm train --norm` and `bench --layer`.
Layer parse_layer(std::string_view text);

}  // namespace allnorm
