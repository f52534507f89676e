// The table of normalizations: one row each, with its tensors, attributes, defaults and source. The program's command
// line, its help and its checks are made from the same rows.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "allnorm/options.hpp"

namespace allnorm {

struct Header;  // allnorm/message.hpp

/// What a row reduces over.
enum class Reduction : std::uint8_t {
  batch_and_space,  ///< N and space, per channel: the batch_norm family
  trailing_axes,    ///< layer_norm
  group_and_space,  ///< a group of channels and space, per sample: group_norm
};

/// How a tensor is shaped, converted and cut over ranks.
enum class TensorRole : std::uint8_t {
  activation,     ///< shaped like the input, in its order and dtype
  channel,        ///< a parameter of shape (C)
  normalized,     ///< a parameter of shape normalized_shape
  channel_state,  ///< running statistics (C)
  counter_state,  ///< one integer
  conv_input,     ///< (N, Ci, space), in the input's order and dtype
  conv_weight,    ///< (C, Ci/groups, k...)
};

struct TensorSpec {
  std::string_view name;
  TensorRole role;
  std::string_view shape;  ///< for people: "(C)"
  std::string_view help;
};

struct OutputSpec {
  std::string_view name;
  std::string_view shape;
  std::string_view help;
};

/// What the ranks of a layer must have in common of an attribute.
enum class Agreement : std::uint8_t {
  same,     ///< its value: a word of every message's header
  by_call,  ///< its value at the call, which changes from call to call and has a field of its own in the header
  none,
};

/// One attribute, whole: how it is read from and written to text, and how a message carries it.
struct Attribute {
  std::string_view name;
  std::string_view values;  ///< for people: "true or false", "at least 1", "clamp or drop"
  std::string_view help;
  /// Throws invalid_argument that names the attribute, the value and what it must be.
  void (*set)(NormOptions&, std::string_view name, std::string_view value);
  std::string (*get)(const NormOptions&);
  std::uint64_t (*word)(const NormOptions&);  ///< equal where the values are
  std::string (*text)(std::uint64_t word);    ///< the value that a word stands for; null where it is a hash
  Agreement agreement = Agreement::same;
};

struct Default {
  std::string_view attribute, value;
};

struct Row {
  std::string_view name;
  std::string_view summary;  ///< one line
  std::string_view source;   ///< paper
  Reduction reduction;
  std::span<const TensorSpec> tensors;  ///< optional ones, besides input and grad_output
  std::span<const Attribute> attributes;
  std::span<const Default> defaults;    ///< where they differ from NormOptions{}
  std::span<const OutputSpec> outputs;  ///< besides output and grad_input
};

/// All rows, in the order of the documentation.
std::span<const Row> catalogue() noexcept;

/// A row with values for its attributes.
struct Layer {
  const Row* row = nullptr;
  NormOptions options{};

  /// The row of that name with its defaults. Throws invalid_argument with the known names.
  explicit Layer(std::string_view name);
  /// Sets one attribute from text. Throws invalid_argument for an unknown attribute or a value out of its range.
  Layer& set(std::string_view attribute, std::string_view value);
  /// Checks what no single attribute can know. Throws invalid_argument.
  void check() const;
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
