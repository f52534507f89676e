// The links between ranks that are processes connected over TCP.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "allnorm/tcp.hpp"
#include "src/exchange.hpp"

namespace allnorm {

/// What tcp() makes its communicator of. Closing them says goodbye.
class TcpLinks : public Links {
 public:
  /// Another rank's failure, as it told it; aborted where it failed because of a third.
  struct Told {
    int rank = 0;
    Code code = Code::aborted;
  };
  /// Those that have come by now, in the order of ranks.
  virtual std::vector<Told> told() = 0;
};

/// As tcp().
std::shared_ptr<TcpLinks> tcp_links(const Meeting& meeting, const Patience& patience);

}  // namespace allnorm
