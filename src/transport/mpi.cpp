// Ranks as MPI processes: point-to-point messages, probed for, so that lengths may differ and no call blocks; short
// ones in memory that the ranks of a host share.
#include "allnorm/mpi.hpp"

#include <algorithm>
#include <climits>
#include <list>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "src/exchange.hpp"
#include "src/transport/deadline.hpp"
#include "src/transport/mpi_comm.hpp"
#include "src/transport/seats.hpp"
#include "src/transport/shared_memory.hpp"

#if defined(OPEN_MPI) && __has_include(<mpi-ext.h>)
#include <mpi-ext.h>
#endif

namespace allnorm {

namespace {

// What the MPI of this process says of itself; one that says nothing does not.
bool mpi_takes_gpu_memory() {
#if defined(MPIX_GPU_SUPPORT_CUDA)  // MPICH and its kin
  int supported = 0;
  return MPIX_GPU_query_support(MPIX_GPU_SUPPORT_CUDA, &supported) == MPI_SUCCESS && supported != 0;
#elif defined(MPIX_CUDA_AWARE_SUPPORT)  // Open MPI
  return MPIX_Query_cuda_support() == 1;
#else
  return false;
#endif
}

HostName processor_name() {
  char text[MPI_MAX_PROCESSOR_NAME] = "";
  int length = 0;
  MPI_Get_processor_name(text, &length);
  return host_name({text, static_cast<std::size_t>(length)});
}

// What every rank shows to all.
template <class T>
struct Shown {
  T own{};
  std::vector<T> all{};  // [rank]
};

// A communicator of ours, so that our tags meet nobody else's, and where its ranks run. Where a rank does not come
// MPI may still write here later.
struct Meeting {
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Request request = MPI_REQUEST_NULL;
  Shown<Seat> seats{{processor_name(), own_cores()}};
  Shown<MemoryName> memories;           // of the hosts, by the first rank of each
  Shown<char> attached;                 // to that of its host
  std::vector<int> nodes{};             // [rank]
  std::shared_ptr<std::byte> memory{};  // where all ranks of this host are attached to it
};

// Collective over `comm`, with the first exchange's deadline. No rank can be named: nothing joins them yet.
std::unique_ptr<Meeting> meet(MPI_Comm comm, const Patience& patience) {
  auto meeting = std::make_unique<Meeting>();
  Deadline deadline(patience, patience.first_timeout);
  const auto wait = [&](const char* call) {
    for (int done = 0;;) {
      check_mpi(MPI_Test(&meeting->request, &done, MPI_STATUS_IGNORE), call);
      if (done) return;
      if (deadline.over()) {
        (void)meeting.release();  // never deleted
        fail(Code::timeout, "the communicator over MPI: a rank is missing or late, not done after " + deadline.text());
      }
      deadline.relax();
    }
  };
  check_mpi(MPI_Comm_idup(comm, &meeting->comm, &meeting->request), "MPI_Comm_idup");
  wait("MPI_Comm_idup");
  MPI_Comm_set_errhandler(meeting->comm, MPI_ERRORS_RETURN);
  int size = 0, rank = 0;
  check_mpi(MPI_Comm_size(meeting->comm, &size), "MPI_Comm_size");
  check_mpi(MPI_Comm_rank(meeting->comm, &rank), "MPI_Comm_rank");
  const auto show = [&](auto& what) {
    constexpr int bytes = sizeof what.own;
    what.all.resize(static_cast<std::size_t>(size));
    check_mpi(
        MPI_Iallgather(&what.own, bytes, MPI_BYTE, what.all.data(), bytes, MPI_BYTE, meeting->comm, &meeting->request),
        "MPI_Iallgather");
    wait("MPI_Iallgather");
  };
  show(meeting->seats);
  meeting->nodes = nodes_of(meeting->seats.all);
  std::vector<int> ranks_of(meeting->nodes.size());  // [first rank of a host]
  for (const int node : meeting->nodes) ++ranks_of[static_cast<std::size_t>(node)];
  if (std::ranges::max(ranks_of) == 1) return meeting;  // nobody shares anything
  const auto node = static_cast<std::size_t>(meeting->nodes[static_cast<std::size_t>(rank)]);
  const std::size_t bytes = Board::bytes_for(static_cast<std::size_t>(ranks_of[node]));
  std::optional<NamedMemory> made;  // has its name until all have come
  if (node == static_cast<std::size_t>(rank) && ranks_of[node] > 1) meeting->memories.own = made.emplace(bytes).name();
  show(meeting->memories);
  meeting->memory = attach(meeting->memories.all[node], bytes);
  meeting->attached.own = meeting->memory != nullptr;
  show(meeting->attached);
  for (std::size_t r = 0; r < meeting->nodes.size(); ++r)
    if (meeting->nodes[r] == static_cast<int>(node) && !meeting->attached.all[r]) meeting->memory.reset();
  return meeting;
}

// [rank in comm] -> its number in MPI_COMM_WORLD, or in comm for a process that is not in there.
std::vector<int> world_ranks(MPI_Comm comm, int size) {
  std::vector<int> own(static_cast<std::size_t>(size)), world(own.size(), MPI_UNDEFINED);
  std::iota(own.begin(), own.end(), 0);
  MPI_Group ours = MPI_GROUP_NULL, all = MPI_GROUP_NULL;
  check_mpi(MPI_Comm_group(comm, &ours), "MPI_Comm_group");
  check_mpi(MPI_Comm_group(MPI_COMM_WORLD, &all), "MPI_Comm_group");
  check_mpi(MPI_Group_translate_ranks(ours, size, own.data(), all, world.data()), "MPI_Group_translate_ranks");
  MPI_Group_free(&ours);
  MPI_Group_free(&all);
  for (std::size_t rank = 0; rank < own.size(); ++rank)
    if (world[rank] == MPI_UNDEFINED) world[rank] = own[rank];
  return world;
}

class MpiLinks final : public Links {
 public:
  MpiLinks(MPI_Comm comm, const Patience& patience, GpuMemory gpu_memory)
      : takes_gpu_memory_(gpu_memory == GpuMemory::taken || (gpu_memory == GpuMemory::ask && mpi_takes_gpu_memory())) {
    const auto meeting = meet(comm, patience);
    own_.push_back({meeting->comm});
    left_.resize(meeting->nodes.size());
    check_mpi(MPI_Comm_rank(meeting->comm, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(meeting->comm, &size_), "MPI_Comm_size");
    const auto& seats = meeting->seats.all;
    crowded_ = is_crowded(seats, static_cast<std::size_t>(rank_));
    names_ = names_of(seats, world_ranks(meeting->comm, size_));
    nodes_ = std::move(meeting->nodes);
    std::size_t here = 0, own_place = 0;
    for (int rank = 0; rank < size_; ++rank) {
      if (rank == rank_) own_place = here;
      places_.push_back(here);
      here += node_of(rank) == node_of(rank_);
    }
    board_ = Board(std::move(meeting->memory), here, own_place);
  }
  MpiLinks(const MpiLinks&) = delete;
  MpiLinks& operator=(const MpiLinks&) = delete;

  ~MpiLinks() override { leave(std::move(own_)); }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }
  std::string_view transport() const noexcept override { return "mpi"; }

  void post(std::span<const int> to, std::uint64_t tag, std::shared_ptr<const Bytes> bytes) override {
    const std::byte* const data = bytes->data();
    const std::size_t size = bytes->size();
    post_from(to, tag, {std::move(bytes), data}, size);
  }
  int node_of(int rank) const override { return nodes_[static_cast<std::size_t>(rank)]; }
  bool shares_memory(std::span<const int> ranks) const override {
    return board_ && std::ranges::all_of(ranks, [this](int rank) { return node_of(rank) == node_of(rank_); });
  }
  bool put(std::span<const int> to, std::uint64_t tag, Parts parts) override {
    return board_.put(tag, parts, to.size() + 1);
  }
  std::span<const std::byte> find(int from, std::uint64_t tag) override { return board_.find(place_of(from), tag); }
  void let_go(int from, const std::byte* message) noexcept override { board_.let_go(place_of(from), message); }
  bool takes_gpu_memory() const noexcept override { return takes_gpu_memory_; }
  void post_from(std::span<const int> to, std::uint64_t tag, std::shared_ptr<const std::byte> data,
                 std::size_t size) override {
    expect(size <= INT_MAX, Code::unsupported,
           [&] { return "a message has " + std::to_string(size) + " bytes, MPI takes at most 2^31-1"; });
    std::list<MpiComm::Sending> made;  // all of them before the first is sent: what MPI has must be kept
    for (const int rank : to) made.push_back({MPI_REQUEST_NULL, tag, rank, data});
    while (!made.empty()) {
      MpiComm::Sending& next = made.front();
      check_mpi(MPI_Isend(data.get(), static_cast<int>(size), MPI_BYTE, next.to, mpi_tag(tag), comm(), &next.request),
                "MPI_Isend");
      own_.front().sendings.splice(own_.front().sendings.end(), made, made.begin());
    }
  }

  std::shared_ptr<const Bytes> poll(int from, std::uint64_t tag) override {
    const auto received = receive(from, tag, in_own_memory);
    return received ? received->bytes : nullptr;
  }
  bool poll_into(int from, std::uint64_t tag, std::shared_ptr<std::byte> data, std::size_t size) override {
    const auto in_place = [&](std::size_t sent) {
      return sent == size ? Receiving{MPI_REQUEST_NULL, std::move(data), nullptr} : in_own_memory(sent);
    };
    const auto received = receive(from, tag, in_place);
    if (received && received->bytes)
      fail(Code::transport, "a record from " + name_of(from) + " has " + std::to_string(received->bytes->size()) +
                                " bytes, must have " + std::to_string(size));
    return received.has_value();
  }

  std::vector<int> unsent(std::uint64_t tag) override {
    own_.front().progress();
    std::vector<int> ranks;
    for (const MpiComm::Sending& sending : own_.front().sendings)
      if (sending.tag == tag && !has_left(sending.to)) ranks.push_back(sending.to);
    return ranks;
  }
  // Its goodbye stays where it is, behind what it sent before; leave() takes all of it.
  bool has_left(int rank) override {
    const auto& receivings = own_.front().receivings;
    const auto begun = receivings.lower_bound({rank, 0});
    if (begun != receivings.end() && begun->first.first == rank) return false;
    char& left = left_[static_cast<std::size_t>(rank)];
    int there = left;
    if (!there) check_mpi(MPI_Iprobe(rank, mpi_tag(farewell_tag), comm(), &there, MPI_STATUS_IGNORE), "MPI_Iprobe");
    left = there != 0;
    return left;
  }
  std::string name_of(int rank) const override { return names_[static_cast<std::size_t>(rank)]; }

  bool crowded() const noexcept override { return crowded_; }
  void abort(const Error&) noexcept override {}  // the program's decision: it alone knows the exit code

 private:
  using Receiving = MpiComm::Receiving;

  MPI_Comm comm() const noexcept { return own_.front().comm; }
  std::size_t place_of(int rank) const noexcept { return places_[static_cast<std::size_t>(rank)]; }

  static Receiving in_own_memory(std::size_t size) {
    auto bytes = std::make_shared<Bytes>(size);
    std::byte* const data = bytes->data();
    return {MPI_REQUEST_NULL, {bytes, data}, bytes};
  }
  // The message of that rank and tag when it is there whole; begun to be received when it is announced, into what
  // place(size) gives.
  template <class Place>
  std::optional<Receiving> receive(int from, std::uint64_t tag, const Place& place) {
    const auto key = std::pair(from, tag);
    auto& receivings = own_.front().receivings;
    auto at = receivings.find(key);
    if (at == receivings.end()) {
      int there = 0;
      MPI_Message message;
      MPI_Status status;
      check_mpi(MPI_Improbe(from, mpi_tag(tag), comm(), &there, &message, &status), "MPI_Improbe");
      if (!there) return std::nullopt;
      int size = 0;
      check_mpi(MPI_Get_count(&status, MPI_BYTE, &size), "MPI_Get_count");
      at = receivings.emplace(key, place(static_cast<std::size_t>(size))).first;
      check_mpi(MPI_Imrecv(at->second.data.get(), size, MPI_BYTE, &message, &at->second.request), "MPI_Imrecv");
    }
    int done = 0;
    check_mpi(MPI_Test(&at->second.request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (!done) return std::nullopt;
    return std::move(receivings.extract(at).mapped());
  }

  bool takes_gpu_memory_;
  std::list<MpiComm> own_;  // one
  std::vector<char> left_;  // [rank] whether it has said goodbye
  int rank_ = 0, size_ = 1;
  bool crowded_ = false;
  std::vector<std::string> names_;   // [rank]
  std::vector<int> nodes_;           // [rank] the first rank of its host
  std::vector<std::size_t> places_;  // [rank] on the board, of those of this host
  Board board_;                      // of nobody where they share no memory
};

}  // namespace

std::shared_ptr<Communicator> mpi(MPI_Comm comm, const Patience& patience, GpuMemory gpu_memory) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  expect(initialized != 0, Code::invalid_argument, "MPI is not initialized: call MPI_Init before allnorm::mpi()");
  comms_left();  // frees what can be: MPI has only so many
  return communicate(std::make_shared<MpiLinks>(comm, patience, gpu_memory), patience);
}

}  // namespace allnorm
