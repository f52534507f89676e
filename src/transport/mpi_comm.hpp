// A communicator of MPI that is ours alone, the messages under way in it, and how a rank leaves it.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "src/exchange.hpp"

namespace allnorm {

/// Throws transport unless the call succeeded.
void check_mpi(int status, const char* call);

/// The tag of a rank's last message in a communicator.
constexpr std::uint64_t farewell_tag = question_context << 32 | 2;

/// 11 bits of context and 15 of sequence: below any MPI's largest tag (Open MPI 2^31-1, MPICH 2^28-1). Messages of one
/// pair arrive in order, and no rank is more than a few exchanges ahead, so a wrapping sequence is harmless.
int mpi_tag(std::uint64_t tag);

/// What MPI holds memory of, so that it must live until MPI is done with it.
struct MpiComm {
  struct Sending {
    MPI_Request request;
    std::uint64_t tag;
    int to;
    std::shared_ptr<const std::byte> data;
  };
  struct Receiving {
    MPI_Request request;
    std::shared_ptr<std::byte> data;
    std::shared_ptr<Bytes> bytes;  // whose data it is, of a message in memory of its own
  };

  MPI_Comm comm = MPI_COMM_NULL;  // a duplicate, which only all its ranks together can free
  std::list<Sending> sendings{};
  std::map<std::pair<int, std::uint64_t>, Receiving> receivings{};  // by rank and tag
  std::vector<int> stay{};                                          // once this rank has left: who has not yet
  std::list<Receiving> unread{};                                    // ... and what they have sent meanwhile

  /// Lets go of what has left.
  void progress();
};

/// This rank leaves `comm` (a list of one). It says goodbye to every other rank, and the communicator is kept until all
/// of them have done so and whatever they sent before is taken: no message can be taken for one of the next
/// communicator, to which MPI may give the same number. Does not wait. A group of more than 64 ranks parts without a
/// word: its communicator is freed when nothing of this rank's is under way.
void leave(std::list<MpiComm>&& comm) noexcept;

/// How many communicators this process has left and not freed, after a look at what has come for them.
std::size_t comms_left() noexcept;

}  // namespace allnorm
