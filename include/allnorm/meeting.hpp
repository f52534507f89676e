// Where ranks that have nothing in common yet meet over TCP.
#pragma once

#include <string>

namespace allnorm {

/// Where and as whom a rank meets the others over TCP. `run` is the same text on all ranks and another one in every
/// run: it keeps out what earlier runs left behind. `token` is a secret of the job (16 to 256 bytes) that keeps out
/// everybody else; without one all ranks are on one machine and `host` is its loopback address.
struct Meeting {
  std::string host{};   ///< of rank 0
  int port = 0;         ///< where rank 0 listens
  int rank = 0;         ///< this one
  int size = 1;         ///< ranks in all
  std::string run{};    ///< of this run alone
  std::string token{};  ///< empty: all ranks are on one machine
};
/// From MASTER_ADDR, RANK and WORLD_SIZE, as torchrun sets them. The port is ALLNORM_PORT, else MASTER_PORT + 1 (the
/// launcher's own store listens on MASTER_PORT), else 29601; the run is ALLNORM_RUN, else the launcher's job and
/// restart; the token is ALLNORM_JOB_TOKEN, or the content of the file that ALLNORM_JOB_TOKEN_FILE names. Throws
/// invalid_argument, naming the variable.
Meeting meeting_from_environment();
/// The same of a rank that knows its number and how many there are: RANK and WORLD_SIZE may be another launcher's.
Meeting meeting_from_environment(int rank, int size);

}  // namespace allnorm
