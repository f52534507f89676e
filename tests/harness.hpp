// Ranks as threads for tests: spawn, release the peers of one that fails, rethrow the first error.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "allnorm/communicator.hpp"
#include "allnorm/device.hpp"

namespace harness {

using World = std::shared_ptr<allnorm::Communicator>;
using Body = std::function<void(const World&, allnorm::Queue&)>;

/// Runs `body` on `ranks` ranks, each a thread with a queue of its own. Rethrows the first error that is not the
/// consequence of another rank's.
void run(int ranks, const Body& body, const allnorm::Patience& patience = {});
/// The same on these ranks, [r] for rank r.
void run(const std::vector<World>& worlds, const Body& body);

/// The message of the Error that `f` throws, "CODE: MESSAGE"; empty when it throws none.
std::string error_of(const std::function<void()>& f);

/// A port that nobody listens on: the system's choice, let go again.
int free_port();

}  // namespace harness
