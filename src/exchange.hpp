// The exchange, once for every transport that can send bytes from rank to rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "allnorm/communicator.hpp"
#include "src/transport/board.hpp"
#include "src/transport/device_threads.hpp"
#include "src/transport/pause.hpp"
#include "src/whereabouts.hpp"

namespace allnorm {

using Bytes = std::vector<std::byte>;

/// What a transport provides: messages of any length between `size` ranks. `tag` tells exchanges apart; between two
/// ranks, messages of one tag arrive in order. No function blocks.
class Links {
 public:
  virtual ~Links() = default;
  virtual int rank() const noexcept = 0;
  virtual int size() const noexcept = 0;
  virtual std::string_view transport() const noexcept = 0;
  /// The bytes are sent to every rank of `to`; they are copied or kept until they are on their way.
  virtual void post(std::span<const int> to, std::uint64_t tag, std::shared_ptr<const Bytes> bytes) = 0;
  /// The next message of that rank and tag, or null while there is none. Throws aborted when the job was aborted.
  virtual std::shared_ptr<const Bytes> poll(int from, std::uint64_t tag) = 0;
  /// The number of a rank's node, the same for ranks between which messages are cheap.
  virtual int node_of(int) const { return 0; }
  /// Whether all of these share memory with this rank: short messages can be put there. The same on all of them.
  virtual bool shares_memory(std::span<const int>) const { return false; }
  /// Puts a message there, where every rank of `to`, and this one too, finds it in place until it lets go of it; false,
  /// and nothing is done, where there is no room for it.
  virtual bool put(std::span<const int>, std::uint64_t, Parts) { return false; }
  /// What that rank, or this one, has put under this tag; empty while there is nothing.
  virtual std::span<const std::byte> find(int, std::uint64_t) { return {}; }
  /// This rank does not look at that message any more.
  virtual void let_go(int, const std::byte*) noexcept {}
  /// Those who have not taken everything yet that was posted to them under this tag; makes progress.
  virtual std::vector<int> unsent(std::uint64_t tag) = 0;
  /// Whether the ranks here are more than their cores; see Pause.
  virtual bool crowded() const noexcept { return false; }
  /// A waiting rank's sleep: that long, or until something is there where the transport can tell.
  virtual void sleep(Pause::Step most) { std::this_thread::sleep_for(most); }
  virtual void abort(const Error& error) noexcept = 0;
  /// True for a rank that has said goodbye: it sends nothing any more. What it sent before is there, or what was begun
  /// to be polled of it still comes, for which this is false.
  virtual bool has_left(int) { return false; }
  /// Of a rank that has_left(): why it is known to be gone although it has not said goodbye; empty where it has.
  virtual std::string lost(int) { return {}; }
  /// How errors call a rank: see Communicator::name_of.
  virtual std::string name_of(int rank) const { return "rank " + std::to_string(rank); }
  /// Whether memory of GPUs may be sent and received in place.
  virtual bool takes_gpu_memory() const noexcept { return false; }
  /// As post, of `size` bytes at `data`, in memory of the host or of a GPU, done being written; kept until they have
  /// left.
  virtual void post_from(std::span<const int> to, std::uint64_t tag, std::shared_ptr<const std::byte> data,
                         std::size_t size);
  /// As poll, into `size` bytes at `data`, kept until they are there; true when they are. Throws transport for a
  /// message of another size.
  virtual bool poll_into(int from, std::uint64_t tag, std::shared_ptr<std::byte> data, std::size_t size);
  /// What the ranks `members` share in order to exchange records in the memory of their GPUs, the same on all of them;
  /// null where the transport does not reach it. `context` is their communicator's. Asked for by every rank.
  virtual std::shared_ptr<DeviceHub> device_hub(const std::vector<int>& members, std::uint64_t context,
                                                const Patience& patience);

  /// The smallest context number that no communicator over these links uses yet on this rank.
  std::uint64_t next_context = question_context + 1;
  Whereabouts whereabouts;
};

/// Beside those of Flag, between ranks alone: this one's record is in memory of the host, and has to stay there.
constexpr std::uint64_t flag_on_cpu = std::uint64_t{1} << 63;

/// Throws invalid_argument for a message of `size` doubles that is not what its header says.
void expect_sound(const Header& header, std::size_t size);

/// What is told of a call whose ranks have more values than can be counted.
std::string too_many_values(const Header& call);

/// How the header of the rank called `name` differs from that of the one called `first_name`: "rank 1: batch_norm, call
/// 3, forward: eps is ..."; empty when equal.
std::string verdict(const Header& first, std::string_view first_name, const Header& other, const std::string& name);

/// Seconds for which a rank, of a communicator over links, has been in an exchange since its patience was over; below 0
/// where it is in none, or still has patience. A thread that can end by itself does so within a second. For any thread.
double overdue(const Communicator& group);

/// A group of one, called `name`.
std::shared_ptr<Communicator> alone(const std::string& name);

/// The communicator of the ranks `members` (positions in `links`, ascending, this rank among them).
std::shared_ptr<Communicator> communicate(std::shared_ptr<Links> links, std::vector<int> members, std::uint64_t context,
                                          const Patience& patience);

/// The communicator of all ranks of `links`.
std::shared_ptr<Communicator> communicate(std::shared_ptr<Links> links, const Patience& patience);

}  // namespace allnorm
