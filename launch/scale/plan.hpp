// `allnorm scale`: what the command line asks for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <boost/program_options/options_description.hpp>
#include <nlohmann/json.hpp>

#include "allnorm/catalogue.hpp"
#include "launch/command.hpp"

namespace allnorm::launch::scale {

using Json = nlohmann::ordered_json;

struct Plan {
  bool strong = false;  ///< the samples of all ranks together stay; otherwise those of each rank
  std::vector<std::int64_t> ranks{};
  std::vector<std::string> transports{};  ///< of threads and mpi; none where all is simulated
  std::vector<std::string> layers{};      ///< as written; simulated and empty: those of the computing times
  std::vector<std::string> shapes{};      ///< of a rank, or of all ranks together where `strong`
  std::string model{};
  std::vector<std::int64_t> batches{1};  ///< of a rank, with a model
  std::string dtype = "f32", layout = "channels_first";
  std::int64_t iterations = 20, warm_up = 5, repeats = 5, threads = 1;
  std::int64_t effective_batch = 0;  ///< 0: no answer is asked for

  std::vector<std::string> clusters{};   ///< simulated; none: on this machine
  std::vector<std::int64_t> groups{};    ///< ranks of a sync group; Sync::world for all
  std::vector<std::string> computing{};  ///< files of bench

  std::string json{}, resume{}, progress = "auto";
  Arguments words{};  ///< what made this plan, but for where its results go

  bool simulates() const noexcept { return !clusters.empty(); }
};

boost::program_options::options_description describe_scale();
/// Reads the options and checks all that needs no rank: throws invalid_argument, invalid_input (a model's file) and
/// unsupported. With --resume alone they are those of the file's config.
Plan read_plan(const Arguments& words);

/// What a sweep is, for its file: two runs of the same are parts of one sweep.
Json settings_of(const Plan& plan);

/// One run of bench: all layers and shapes on some ranks.
struct Run {
  std::int64_t repeat = 0, batch = 1;
  std::string transport{};
  std::int64_t ranks = 1;

  bool operator==(const Run&) const = default;
};
/// In the order in which they are made: each repeat has all of them, so that what changes on the machine meanwhile
/// changes all.
std::vector<Run> runs_of(const Plan& plan);
/// Samples of each of its ranks, with a model.
std::int64_t samples_of(const Plan& plan, const Run& run);
/// The rows that bench has of each.
std::int64_t lines_of(const Plan& plan);
/// bench's own words for it, without the ranks.
Arguments bench_words(const Plan& plan, const Run& run);

/// Samples whose statistics a layer normalizes with: those of its sync group of `ranks` in all, times the iterations of
/// its window, or times the mean number of mini-batches that a call of a batch has behind it.
double effective_batch(const Layer& layer, std::int64_t ranks, std::int64_t batch);

}  // namespace allnorm::launch::scale
