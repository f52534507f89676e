// Clusters as the numbers that the simulation needs: a file each, of this repository or the user's.
#pragma once

#include <string>
#include <vector>

#include "launch/scale/plan.hpp"

namespace allnorm::launch::scale {

struct Cluster {
  std::string name{}, title{};
  Json parameters{};  ///< name -> value
};
/// The cluster NAME of launch/clusters/NAME.json, or of a file. Throws invalid_argument for a name that is not known,
/// and invalid_input for a file that is missing or no cluster.
Cluster read_cluster(const std::string& name);
/// The names of those that come with the program, sorted.
std::vector<std::string> known_clusters();

}  // namespace allnorm::launch::scale
