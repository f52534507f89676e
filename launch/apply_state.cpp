// `allnorm apply`: a layer's state as a safetensors file.
#include <algorithm>
#include <cctype>
#include <cstring>
#include <utility>

#include "launch/apply_outputs.hpp"
#include "launch/files/input_file.hpp"

namespace allnorm::launch {

namespace {

constexpr std::pair<StateType, std::string_view> types[] = {{StateType::f64, "F64"},
                                                            {StateType::f32, "F32"},
                                                            {StateType::i64, "I64"},
                                                            {StateType::f16, "F16"},
                                                            {StateType::bf16, "BF16"}};
// Names of the entries that hold one rank's share, each followed by a space: the format has no flags for tensors.
constexpr const char* per_rank_key = "allnorm.per_rank";
// Ranks of the run. A layer knows those of its own group only: with sync=none every rank has a window of its own.
constexpr const char* ranks_key = "allnorm.ranks";

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

}  // namespace

TensorFile to_file(const State& state, int ranks) {
  TensorFile content;
  content.metadata[ranks_key] = std::to_string(ranks);
  for (const StateEntry& entry : state.entries) {
    for (const auto& [type, name] : types)
      if (type == entry.type) content.tensors.push_back({entry.name, std::string(name), entry.shape, entry.data});
    if (entry.per_rank) content.metadata[per_rank_key] += entry.name + " ";
  }
  return content;
}

State read_state(const std::string& path, int ranks, bool drop_window) {
  TensorFile content = read_safetensors(path);
  const auto found = content.metadata.find(per_rank_key);
  const std::string per_rank = found == content.metadata.end() ? "" : " " + found->second;
  State state;
  for (StoredTensor& tensor : content.tensors) {
    StateEntry entry{tensor.name, StateType::f64, tensor.shape, std::move(tensor.data), false};
    bool known = false;
    for (const auto& [type, name] : types)
      if (name == tensor.dtype) {
        entry.type = type;
        known = true;
      }
    if (!known)
      bad_file(path, "tensor " + printable(tensor.name) + " has the type " + lower(tensor.dtype) +
                         ", must have f64, f32, f16, bf16 or i64");
    entry.per_rank = per_rank.find(" " + tensor.name + " ") != per_rank.npos;
    state.entries.push_back(std::move(entry));
  }
  const auto made_by = content.metadata.find(ranks_key);
  if (state.has_history() && !drop_window && made_by != content.metadata.end() &&
      made_by->second != std::to_string(ranks))
    bad_file(path, "has entries in a window or an open batch and is of " + made_by->second + " ranks, must be of " +
                       std::to_string(ranks) + " as this run, or be loaded with --drop-window");
  return state;
}

}  // namespace allnorm::launch
