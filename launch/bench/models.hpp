// Models as the shapes of their normalization layers: a file each, of this repository or the user's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace allnorm::launch::bench {

/// `count` layers that normalize (N, channels, space...).
struct ModelLayer {
  std::int64_t channels = 0, count = 1;
  std::vector<std::int64_t> space{};
};
struct Model {
  std::string name{}, source{};
  std::vector<ModelLayer> layers{};
};

/// The model NAME of launch/models/NAME.json, or of a file whose name ends in .json. Throws invalid_argument for a name
/// that is not known, and invalid_input for a file that is no model.
Model read_model(const std::string& name);
/// The names of those that come with the program, sorted.
std::vector<std::string> known_models();

}  // namespace allnorm::launch::bench
