// Checkpoints of `allnorm train`.
#include "launch/train/checkpoint.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "launch/files/input_file.hpp"

namespace allnorm::launch::train {
namespace {

constexpr std::array<std::pair<StateType, std::string_view>, 3> types{
    {{StateType::f64, "F64"}, {StateType::f32, "F32"}, {StateType::i64, "I64"}}};
constexpr std::string_view kind = "allnorm train checkpoint 1";
constexpr std::string_view per_rank_mark = "per_rank/";  // before the name of an entry that holds one rank's share

// The texts beside the tensors.
constexpr std::string_view format_field = "format", position_field = "position", events_field = "events",
                           partial_field = "partial";  // in the middle of an epoch

std::string prefix_of(int rank, std::size_t layer) {
  return "rank" + std::to_string(rank) + ".norm" + std::to_string(layer + 1) + ".";
}

std::string file_name(const StateEntry& entry, int rank, std::size_t layer) {
  return prefix_of(rank, layer) + (entry.per_rank ? std::string(per_rank_mark) : "") + entry.name;
}

State saved(Network& network, std::size_t layer) {
  Operation* const own = network.operation(layer);
  return own ? own->save(network.queue()) : State{};
}

std::string past_prefix(int rank) { return "rank" + std::to_string(rank) + ".past."; }

/// One rank's layers as a list of tensors, and within an epoch the past images that it measures with.
std::vector<StoredTensor> tensors_of(Network& network, int rank, bool within_epoch) {
  std::vector<StoredTensor> tensors;
  const auto add = [&](std::string name, StateEntry& entry) {
    const auto type = std::find_if(types.begin(), types.end(), [&](const auto& t) { return t.first == entry.type; });
    tensors.push_back({std::move(name), std::string(type->second), entry.shape, std::move(entry.data)});
  };
  for (std::size_t l = 0; l < network.layers(); ++l)
    for (StateEntry& entry : saved(network, l).entries) add(file_name(entry, rank, l), entry);
  if (within_epoch)
    for (StateEntry& entry : network.past().entries) add(past_prefix(rank) + entry.name, entry);
  return tensors;
}

/// "tensor 'velocity' has nan at 7" of the first value that is not finite; empty where there is none.
std::string not_finite(const std::vector<StoredTensor>& tensors) {
  const auto look = [](const StoredTensor& tensor, auto value) -> std::string {
    for (std::size_t i = 0; i * sizeof value < tensor.data.size(); ++i) {
      std::memcpy(&value, tensor.data.data() + i * sizeof value, sizeof value);
      if (!std::isfinite(value))
        return "tensor " + printable(tensor.name) + " has " + std::to_string(value) + " at " + std::to_string(i);
    }
    return {};
  };
  for (const StoredTensor& tensor : tensors) {
    std::string found;
    if (tensor.dtype == "F32") found = look(tensor, float{});
    if (tensor.dtype == "F64") found = look(tensor, double{});
    if (!found.empty()) return found;
  }
  return {};
}

// The exchange adds doubles. What is gathered travels as whole numbers below 2^32, which addition to zeros leaves as
// they are, whatever the bits mean.
std::vector<double> packed(const std::string& bytes, std::size_t words) {
  std::vector<double> payload(words, 0.0);
  for (std::size_t i = 0; i * 4 < bytes.size(); ++i) {
    std::uint32_t word = 0;
    std::memcpy(&word, bytes.data() + 4 * i, std::min<std::size_t>(4, bytes.size() - 4 * i));
    payload[i] = word;
  }
  return payload;
}

std::string unpacked(const std::vector<double>& payload, std::size_t size) {
  std::string bytes(4 * payload.size(), '\0');
  for (std::size_t i = 0; i < payload.size(); ++i) {
    const auto word = static_cast<std::uint32_t>(payload[i]);
    std::memcpy(bytes.data() + 4 * i, &word, 4);
  }
  bytes.resize(size);
  return bytes;
}

/// A list of tensors as bytes: a line of JSON, then the data.
std::string to_bytes(const std::vector<StoredTensor>& tensors) {
  Json header = Json::array();
  std::string data;
  for (const StoredTensor& tensor : tensors) {
    header.push_back({tensor.name, tensor.dtype, std::vector<std::int64_t>(tensor.shape.begin(), tensor.shape.end()),
                      tensor.data.size()});
    data.append(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
  }
  return header.dump() + '\n' + data;
}

std::vector<StoredTensor> from_bytes(const std::string& bytes) {
  const std::size_t line = bytes.find('\n');
  const auto* data = reinterpret_cast<const std::byte*>(bytes.data() + line + 1);
  std::vector<StoredTensor> tensors;
  for (const Json& entry : Json::parse(bytes.substr(0, line))) {
    const auto extents = entry[2].get<std::vector<std::int64_t>>();
    const auto size = entry[3].get<std::size_t>();
    tensors.push_back({entry[0], entry[1], Shape(extents), {data, data + size}});
    data += size;
  }
  return tensors;
}

/// Every rank's bytes, on all ranks (only rank 0 has use for them).
std::vector<std::string> gather(const std::string& own, Rank& rank) {
  const auto ranks = static_cast<std::size_t>(rank.size), me = static_cast<std::size_t>(rank.rank);
  if (ranks == 1) return {own};
  Message sizes{Header("checkpoint sizes", Direction::gradients, 0), std::vector<double>(ranks, 0.0), 0, {}};
  sizes.payload[me] = static_cast<double>(own.size());
  sizes = rank.world->exchange(std::move(sizes), rank.queue);
  std::vector<std::string> all;
  for (std::size_t r = 0; r < ranks; ++r) {  // one after another bounds the memory
    const auto size = static_cast<std::size_t>(sizes.payload[r]);
    Message part{Header("checkpoint", Direction::gradients, r), {}, 0, {}};
    part.payload = packed(r == me ? own : std::string(), (size + 3) / 4);
    part = rank.world->exchange(std::move(part), rank.queue);
    all.push_back(rank.rank == 0 ? unpacked(part.payload, size) : std::string());
  }
  return all;
}

StoredTensor stored_floats(std::string name, std::span<const float> values) {
  return stored(std::move(name), Shape{static_cast<std::int64_t>(values.size())}, values);
}

}  // namespace

std::string write_checkpoint(const std::string& path, const Events& events, const Position& position, Trainer& trainer,
                             Rank& rank) {
  const std::vector<std::string> parts =
      gather(to_bytes(tensors_of(trainer.network(), rank.rank, position.update > 0)), rank);
  if (rank.rank != 0) return {};
  TensorFile file;
  file.metadata[std::string(format_field)] = kind;
  file.metadata[std::string(position_field)] = text_of(position);
  if (position.update > 0) file.metadata[std::string(partial_field)] = text_of(trainer.partial());
  file.metadata[std::string(events_field)] = Json(events).dump();
  file.tensors.push_back(stored_floats("parameters", trainer.network().parameters()));
  file.tensors.push_back(stored_floats("velocity", trainer.velocity()));
  for (const std::string& part : parts)
    for (StoredTensor& tensor : from_bytes(part)) file.tensors.push_back(std::move(tensor));
  std::string wrong = not_finite(file.tensors);
  if (!wrong.empty()) return wrong;
  if (position.begins_a_run()) file.tensors.clear();  // the next run starts anew
  write_safetensors(path, file);
  return {};
}

Checkpoint::Checkpoint(const std::string& path, const Settings& settings, const Json& config)
    : file_(read_safetensors(path)) {
  const auto text = [&](std::string_view field) -> const std::string& {
    const auto found = file_.metadata.find(std::string(field));
    if (found == file_.metadata.end()) bad_file(path, std::string(field) + " is missing, must be in the metadata");
    return found->second;
  };
  const auto format = file_.metadata.find(std::string(format_field));
  if (format == file_.metadata.end() || format->second != kind)
    bad_file(path, "is not a checkpoint, must be one that train --checkpoint wrote");
  position_ = read_position(path, text(position_field), settings);
  events_ = read_events(path, text(events_field), settings, config, position_);
  if (position_.update > 0) partial_ = read_partial(path, text(partial_field), position_);
  if (position_.begins_a_run() && !file_.tensors.empty())
    bad_file(path, "tensor " + printable(file_.tensors.front().name) + " is there, must not be at epoch 0 of a run");
  if (const std::string wrong = not_finite(file_.tensors); !wrong.empty()) bad_file(path, wrong + ", must be finite");
}

void Checkpoint::restore(Trainer& trainer, const Rank& rank) const {
  if (position_.begins_a_run()) return;
  if (position_.update > trainer.updates_per_epoch())
    bad_file(file_.file, "position is " + text_of(position_) + ", must have an update of at most " +
                             std::to_string(trainer.updates_per_epoch()));
  trainer.partial() = partial_;
  Network& network = trainer.network();
  const auto fill = [&](std::string_view name, std::span<float> target) {
    const auto values = values_of<float>(file_, name, Shape{static_cast<std::int64_t>(target.size())});
    std::copy(values.begin(), values.end(), target.begin());
  };
  fill("parameters", network.parameters());
  fill("velocity", trainer.velocity());
  std::size_t known = 2;
  for (int r = 0; r < rank.size; ++r)
    for (std::size_t l = 0; l < network.layers(); ++l) {
      const State state = state_of(prefix_of(r, l), known);
      if (r != rank.rank) continue;
      // A new layer's entries are in every state of it; without some of them a part would start anew.
      for (const StateEntry& entry : saved(network, l).entries)
        if (const std::string name = file_name(entry, r, l); file_.find(name) == nullptr)
          bad_file(file_.file, "lacks the tensor " + printable(name) + ", must have it");
      try {
        if (Operation* const own = network.operation(l))
          own->load(state, network.queue());
        else
          expect(state.entries.empty(), Code::invalid_input, "are there, must not be: nothing has a state there");
      } catch (const Error& error) {
        bad_file(file_.file, "tensors " + prefix_of(r, l) + "*: " + error.message(), error.where());
      }
    }
  for (int r = 0; r < rank.size && position_.update > 0; ++r) {
    const State past = state_of(past_prefix(r), known);
    if (r != rank.rank) continue;
    try {
      network.set_past(past);
    } catch (const Error& error) {
      bad_file(file_.file, "tensors " + past_prefix(r) + "*: " + error.message(), error.where());
    }
  }
  if (known != file_.tensors.size())
    bad_file(file_.file, "has " + std::to_string(file_.tensors.size()) + " tensors, must have " +
                             std::to_string(known) + ": parameters, velocity, and those of " +
                             std::to_string(rank.size) + " ranks and " + std::to_string(network.layers()) + " layers");
}

/// The tensors of that prefix as a state; adds their number to `known`.
State Checkpoint::state_of(const std::string& prefix, std::size_t& known) const {
  State state;
  for (const StoredTensor& tensor : file_.tensors) {
    if (!tensor.name.starts_with(prefix)) continue;
    StateEntry entry{tensor.name.substr(prefix.size()), StateType::f64, tensor.shape, tensor.data, false};
    if (entry.name.starts_with(per_rank_mark)) {
      entry.name.erase(0, per_rank_mark.size());
      entry.per_rank = true;
    }
    const auto type = std::find_if(types.begin(), types.end(), [&](const auto& t) { return t.second == tensor.dtype; });
    if (type == types.end())
      bad_file(file_.file, "tensor " + printable(tensor.name) + " is " + tensor.dtype + ", must be F64, F32 or I64");
    entry.type = type->first;
    state.entries.push_back(std::move(entry));
    ++known;
  }
  return state;
}

std::uint64_t Checkpoint::digest() const {
  std::uint64_t digest = hash_of(nullptr, 0);
  const auto add = [&](const void* bytes, std::size_t size) {
    digest = hash_of(&size, sizeof size, digest);  // where one ends and the next begins
    digest = hash_of(bytes, size, digest);
  };
  for (const std::string_view field : {position_field, events_field, partial_field}) {
    const auto found = file_.metadata.find(std::string(field));
    const std::string text = found == file_.metadata.end() ? "" : found->second;
    add(text.data(), text.size());
  }
  for (const StoredTensor& tensor : file_.tensors) {
    const std::string head = tensor.name + '\0' + tensor.dtype + to_string(tensor.shape);
    add(head.data(), head.size());
    add(tensor.data.data(), tensor.data.size());
  }
  return digest;
}

}  // namespace allnorm::launch::train
