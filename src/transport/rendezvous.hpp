// How ranks that have nothing in common yet meet: over TCP or through a file. What each shows is there for all others.
#pragma once

#include <cstddef>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "allnorm/meeting.hpp"
#include "src/transport/deadline.hpp"
#include "src/transport/sockets.hpp"

namespace allnorm {

/// The port of meeting_from_environment(). Throws invalid_argument, naming the variable.
int meeting_port();
/// Throws invalid_argument for a token of another length, and where none is given for a host that others reach.
void check_token(const Meeting& meeting);
/// What tells runs apart on the wire.
std::uint64_t hash_of_run(const Meeting& meeting);

/// The ranks of a run, connected to rank 0, which passes on what one has to tell all: that it failed. A rank that ends
/// without a good-bye counts as failed. May be used by two threads.
class Gathering {
 public:
  /// A connection, and what has come over it and was not taken.
  struct Peer {
    Socket socket{};
    std::vector<std::byte> received{};
  };
  /// Makes what a rank shows the others, at most 4096 bytes, once it is connected with rank 0. Rank 0 itself is given
  /// no socket.
  using Card = std::function<std::vector<std::byte>(const Socket& to_rank_0)>;

  /// Collective: waits for all ranks, at most first_timeout. What every rank shows is then in cards() on every rank.
  /// Throws timeout (rank 0 names who is missing, and tells the others), transport.
  Gathering(const Meeting& meeting, const Patience& patience, const Card& own);
  /// Where the others have nothing to show, or it does not matter.
  Gathering(const Meeting& meeting, std::vector<std::byte> own, const Patience& patience);
  /// Says good-bye.
  ~Gathering();
  Gathering(const Gathering&) = delete;
  Gathering& operator=(const Gathering&) = delete;

  const std::vector<std::vector<std::byte>>& cards() const noexcept { return cards_; }  // [rank]
  /// What rank 0 shows.
  const std::vector<std::byte>& bytes() const noexcept { return cards_.front(); }
  /// Tells all other ranks `why`, once. Does not wait for them.
  void tell(const std::string& why) noexcept;
  /// What another rank told, or that one is gone; empty while there is nothing. Passes it on. Never blocks.
  std::string heard() noexcept;
  /// The connections, for another use; the gathering is over. Rank 0's: [rank], its own is empty; of others: rank 0's
  /// alone.
  std::vector<Peer> release() noexcept { return std::move(peers_); }

 private:
  void host(const Card& own, const Patience& patience);
  void visit(const Card& own, const Patience& patience);
  void pass_on(const std::string& why, int except) noexcept;

  Meeting meeting_;
  std::vector<std::vector<std::byte>> cards_;
  std::mutex mutex_;
  std::vector<Peer> peers_;  // see release()
  std::string why_;
  bool told_ = false;
};

/// Rank 0's `bytes` on every rank, through a file that all see. `run` must not be empty. The file appears whole; one of
/// another run is not taken. The caller removes it when all ranks have it. Throws timeout, invalid_argument, transport.
std::vector<std::byte> meet_in_file(const std::string& path, const std::string& run, int rank,
                                    const std::vector<std::byte>& bytes, const Patience& patience);

}  // namespace allnorm
