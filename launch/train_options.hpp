// The options of `allnorm train` as they are typed. Without libtorch, so that help and completion need none of it.
#pragma once

#include <array>
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>

#include <boost/program_options/options_description.hpp>

#include "launch/ranks.hpp"

namespace allnorm::launch {

inline constexpr std::array<std::string_view, 3> split_names{"iid", "label", "domain"};  // as train::Split has them

struct TrainOptions {
  RankOptions ranks;
  std::string data;  ///< empty: the digits
  std::string norm_list = "batch_norm,sync_batch_norm,batch_renorm,cross_iteration_batch_norm,group_norm";
  std::int64_t batch = 1;       ///< images per rank and call
  std::int64_t accumulate = 0;  ///< calls per update; 0: the norm's minibatches
  std::int64_t epochs = 20, seeds = 1;
  std::optional<double> lr;  ///< the peak; not given: learning_rate()
  std::string split_word = "iid";
  std::string preset;  ///< "demo", "sweep" or empty
  std::string log, tensorboard, report, checkpoint;
  std::string resume, resume_if_present;  ///< empty: a start from the beginning
  std::string progress_word = "auto";
};
/// The options with their help, bound to `options`. Each is checked by itself.
boost::program_options::options_description describe(TrainOptions& options);

/// `allnorm train --help`.
void help_train(std::ostream& out);

}  // namespace allnorm::launch
