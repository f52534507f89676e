// Checkpoints of `allnorm train`.
#include "launch/train/checkpoint.hpp"

#include <algorithm>
#include <array>
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

std::string prefix_of(int rank, std::size_t layer) {
  return "rank" + std::to_string(rank) + ".norm" + std::to_string(layer + 1) + ".";
}

/// One rank's layers as a list of tensors.
std::vector<StoredTensor> tensors_of(Network& network, int rank) {
  std::vector<StoredTensor> tensors;
  for (std::size_t l = 0; l < network.layers(); ++l)
    for (StateEntry& entry : network.norm(l).save(network.queue()).entries) {
      const auto type = std::find_if(types.begin(), types.end(), [&](const auto& t) { return t.first == entry.type; });
      tensors.push_back({prefix_of(rank, l) + (entry.per_rank ? std::string(per_rank_mark) : "") + entry.name,
                         std::string(type->second), entry.shape, std::move(entry.data)});
    }
  return tensors;
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

void write_checkpoint(const std::string& path, const Events& events, const Position& position, Trainer* trainer,
                      Rank& rank) {
  std::vector<std::string> parts;
  if (trainer) parts = gather(to_bytes(tensors_of(trainer->network(), rank.rank)), rank);
  if (rank.rank != 0) return;
  TensorFile file;
  file.metadata["format"] = kind;
  file.metadata["position"] = Json{position.job, position.epoch}.dump();
  file.metadata["events"] = Json(events).dump();
  if (trainer) {
    file.tensors.push_back(stored_floats("parameters", trainer->network().parameters()));
    file.tensors.push_back(stored_floats("velocity", trainer->velocity()));
  }
  for (const std::string& part : parts)
    for (StoredTensor& tensor : from_bytes(part)) file.tensors.push_back(std::move(tensor));
  write_safetensors(path, file);
}

Checkpoint::Checkpoint(const std::string& path, const Json& config) : file_(read_safetensors(path)) {
  const auto format = file_.metadata.find("format");
  if (format == file_.metadata.end() || format->second != kind)
    bad_file(path, "is not a checkpoint, must be one that train --checkpoint wrote");
  try {
    const Json position = Json::parse(file_.metadata.at("position"));
    position_ = {position.at(0), position.at(1)};
    events_ = Json::parse(file_.metadata.at("events")).get<Events>();
    const Json& then = events_.at(0).at("settings");
    for (const auto& [field, now] : config.at("settings").items())
      if (!then.contains(field) || then.at(field) != now)
        bad_file(path, "setting " + field + " is " + (then.contains(field) ? then.at(field).dump() : "missing") +
                           ", must be " + now.dump() + " as now");
  } catch (const nlohmann::json::exception&) {
    bad_file(path, "has malformed metadata, must be as train --checkpoint wrote it");
  } catch (const std::out_of_range&) {
    bad_file(path, "lacks metadata, must be as train --checkpoint wrote it");
  }
}

void Checkpoint::restore(Trainer& trainer, int rank) const {
  if (position_.epoch == 0) return;
  const auto fill = [&](std::string_view name, std::span<float> target) {
    const auto values = values_of<float>(file_, name, Shape{static_cast<std::int64_t>(target.size())});
    std::copy(values.begin(), values.end(), target.begin());
  };
  fill("parameters", trainer.network().parameters());
  fill("velocity", trainer.velocity());
  for (std::size_t l = 0; l < trainer.network().layers(); ++l) {
    const std::string prefix = prefix_of(rank, l);
    State state;
    for (const StoredTensor& tensor : file_.tensors) {
      if (tensor.name.compare(0, prefix.size(), prefix) != 0) continue;
      StateEntry entry{tensor.name.substr(prefix.size()), StateType::f64, tensor.shape, tensor.data, false};
      if (entry.name.compare(0, per_rank_mark.size(), per_rank_mark) == 0) {
        entry.name.erase(0, per_rank_mark.size());
        entry.per_rank = true;
      }
      const auto type =
          std::find_if(types.begin(), types.end(), [&](const auto& t) { return t.second == tensor.dtype; });
      if (type == types.end())
        bad_file(file_.file, "tensor " + printable(tensor.name) + " is " + tensor.dtype + ", must be F64, F32 or I64");
      entry.type = type->first;
      state.entries.push_back(std::move(entry));
    }
    trainer.network().norm(l).load(state, trainer.network().queue());
  }
}

}  // namespace allnorm::launch::train
