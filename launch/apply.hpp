// `allnorm apply LAYER`: what the command line asks for.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <boost/program_options/options_description.hpp>

#include "allnorm/catalogue.hpp"
#include "allnorm/tensor.hpp"
#include "launch/command.hpp"
#include "launch/ranks.hpp"

namespace allnorm::launch {

/// Which axis of the files is cut over the ranks.
enum class Split : std::uint8_t { none, batch, space, channels };

struct ApplyPlan {
  explicit ApplyPlan(std::string_view name) : layer(name) {}

  Layer layer;
  RankOptions ranks{};
  std::map<std::string, std::string, std::less<>> tensors{};  ///< name -> file, with {rank} and {step}
  std::string out{}, load_state{}, save_state{};
  std::optional<DType> dtype{};  ///< not given: the input file's
  Order order = Order::channels_first;
  std::int64_t steps = 1;
  Split split = Split::none;
  bool drop_window = false;

  bool gives(std::string_view name) const { return tensors.find(name) != tensors.end(); }
  bool wants_gradients() const;
  /// Cross-Iteration BN reads the convolution's input and weight.
  bool compensates() const { return layer.options.compensates(); }
};

/// The tensors of a row with the two that every layer takes, input and grad_output, first.
std::vector<TensorSpec> tensors_of(const Row& row);

/// The options of `allnorm apply`, for its help.
boost::program_options::options_description describe_apply();
/// Reads "LAYER [options]" and checks all that needs no file. Throws invalid_argument and unsupported.
ApplyPlan read_apply_plan(const Arguments& words);
/// Checks what depends on the number of ranks. Throws invalid_argument.
void check_plan(const ApplyPlan& plan, int ranks);

/// `pattern` with {rank} and {step} replaced.
std::string expand(std::string_view pattern, int rank, std::int64_t step);
bool mentions(std::string_view pattern, std::string_view placeholder);

}  // namespace allnorm::launch
