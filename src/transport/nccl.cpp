// Ranks with a GPU each: records over NCCL in the order of a stream.
#include "allnorm/nccl.hpp"

#include <cstdio>
#include <cstring>

#include "kernels/cuda/kernels.hpp"
#include "src/transport/nccl_group.hpp"

namespace allnorm {

namespace {

// An id as whole numbers, which a sum of messages leaves as they are: 32 bits in each double.
using IdWords = std::array<std::uint32_t, sizeof(NcclId) / sizeof(std::uint32_t)>;

void put(const NcclId& id, double* to) {
  IdWords words;
  std::memcpy(words.data(), id.bytes.data(), sizeof words);
  std::copy(words.begin(), words.end(), to);
}
NcclId id_from(const double* from) {
  IdWords words;
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = static_cast<std::uint32_t>(from[i]);
  NcclId id;
  std::memcpy(id.bytes.data(), words.data(), sizeof words);
  return id;
}
NcclId id_from(const std::vector<std::byte>& bytes) {
  NcclId id;
  expect(bytes.size() == id.bytes.size(), Code::transport, [&] {
    return "the id of an NCCL group has " + std::to_string(bytes.size()) + " bytes, must have " +
           std::to_string(id.bytes.size());
  });
  std::copy(bytes.begin(), bytes.end(), id.bytes.begin());
  return id;
}

void expect_sound(const Queue& queue, int rank, int size, const Patience& patience) {
  expect(queue.device().kind == DeviceKind::cuda, Code::invalid_argument,
         [&] { return "the queue of an NCCL group is on " + to_string(queue.device()) + ", must be on a GPU"; });
  expect(size >= 1 && rank >= 0 && rank < size, Code::invalid_argument, [&] {
    return "rank is " + std::to_string(rank) + " of " + std::to_string(size) + ", must be from 0 to ranks - 1";
  });
  expect(patience.timeout > 0 && patience.first_timeout > 0, Code::invalid_argument,
         "the timeout of an exchange must be positive");
}

// `number`: the rank's among all.
std::shared_ptr<Communicator> connect(
    const NcclId& id, int rank, RankNames names, int number, Queue& queue, const Patience& patience,
    const SideChannels& channels, const std::shared_ptr<HostExchanges>& pending = std::make_shared<HostExchanges>());

class NcclCommunicator final : public Communicator {
 public:
  explicit NcclCommunicator(std::shared_ptr<NcclGroup> group) : group_(std::move(group)) {}

  int rank() const noexcept override { return group_->rank(); }
  int size() const noexcept override { return group_->size(); }
  std::string name_of(int rank) const override { return group_->names()[static_cast<std::size_t>(rank)]; }
  std::string_view transport() const noexcept override { return "nccl"; }
  Traffic traffic() const noexcept override { return traffic_; }
  Reporter reporter(const Queue&) override { return group_->reports().reporter(); }

  void check() override {
    group_->failure().rethrow();
    group_->reports().check(group_->names());
  }

  std::size_t room(std::size_t count, const Queue&) const override {
    if (size() == 1) return 0;
    const auto ranks = static_cast<std::size_t>(size());
    if (group_->gathers()) return ranks * stride(count);
    return ranks * sizeof(RecordHead) + count * sizeof(double);  // means in the first round are fewer than `count`
  }

  Gathered gather(const Record& record, Queue& queue) override {
    group_->expect_usable(queue);
    finish_host_exchanges(*group_);  // all ranks enqueue in one order
    count(record.count);
    if (size() == 1) return {record.data, stride(record.count), 1, nullptr};
    expect(record.room != nullptr, Code::invalid_argument,
           [&] { return "a record has no room, must have " + std::to_string(room(record.count, queue)) + " bytes"; });
    const cuda::DeviceGuard guard(queue.device().index);
    const cudaStream_t stream = cuda::stream_of(queue);
    if (group_->gathers()) {
      group_->enqueue("an exchange over NCCL", [&](ncclComm_t comm) {
        return ncclAllGather(record.data, record.room, stride(record.count), ncclUint8, comm, stream);
      });
      return {record.room, stride(record.count), size(), nullptr};
    }
    auto* const payload = reinterpret_cast<double*>(record.data + sizeof(RecordHead));
    if (record.moments == 0) {
      add_with_heads(record, payload, record.count, stream);
    } else {
      auto* const round =
          reinterpret_cast<double*>(record.room + static_cast<std::size_t>(size()) * sizeof(RecordHead));
      cuda::merge_by_adding(cuda::MergeStep::weigh, record, round, queue);
      add_with_heads(record, round, 1 + record.moments, stream);
      cuda::merge_by_adding(cuda::MergeStep::centre, record, round, queue);
      group_->enqueue("an exchange over NCCL", [&](ncclComm_t comm) {
        return ncclAllReduce(payload, payload, record.count, ncclDouble, ncclSum, comm, stream);
      });
      cuda::merge_by_adding(cuda::MergeStep::merge, record, round, queue);
    }
    return {record.room, sizeof(RecordHead), size(), payload};
  }

  Pending start_exchange(Message message, Queue& queue) override {
    group_->expect_usable(queue);
    count(message.payload.size());
    return start_host_exchange(group_, std::move(message), queue);
  }

  // Colors first; then the first rank of each color has an id for its group. ncclCommSplit would tie the subgroup's
  // resources, and so its end, to this group's.
  std::shared_ptr<Communicator> split(std::int64_t color, Queue& queue) override {
    constexpr std::int64_t most = std::int64_t{1} << 53;  // what a double holds exactly
    expect(-most <= color && color <= most, Code::invalid_argument,
           [&] { return "the color of a split is " + std::to_string(color) + ", must be from -2^53 to 2^53"; });
    const auto ranks = static_cast<std::size_t>(size()), own = static_cast<std::size_t>(rank());
    constexpr std::size_t words = IdWords{}.size();
    Message colors{Header("split", Direction::split, group_->host_exchanges), {}, 0, {}};
    colors.payload.assign(ranks, 0.0);
    colors.payload[own] = static_cast<double>(color);
    colors = exchange(std::move(colors), queue);
    std::size_t first = ranks;  // of this color
    int place = 0;
    RankNames names;
    for (std::size_t r = 0; r < ranks; ++r) {
      if (colors.payload[r] != static_cast<double>(color)) continue;
      if (first == ranks) first = r;
      if (r < own) ++place;
      names.push_back(group_->names()[r]);
    }
    Message ids{Header("split", Direction::split, group_->host_exchanges), {}, 0, {}};
    ids.payload.assign(ranks * words, 0.0);
    if (first == own) put(NcclId::make(), &ids.payload[own * words]);
    ids = exchange(std::move(ids), queue);
    return connect(id_from(&ids.payload[first * words]), place, std::move(names), group_->number(), queue,
                   group_->patience(), group_->channels(), group_->pending());
  }

  void decline(const Error& error) noexcept override {
    if (size() > 1) abort(error);
  }
  void abort(const Error& error) noexcept override {
    try {
      group_->abort(group_->own_name() + " failed: " + error.message());
    } catch (...) {
      group_->end(Code::aborted, {});
    }
  }

 private:
  // Gathers the heads, and adds `count` doubles of every rank in place.
  void add_with_heads(const Record& record, double* sums, std::size_t count, cudaStream_t stream) {
    group_->enqueue("an exchange over NCCL", [&](ncclComm_t comm) {
      ncclResult_t result = ncclGroupStart();
      if (result == ncclSuccess)
        result = ncclAllGather(record.data, record.room, sizeof(RecordHead), ncclUint8, comm, stream);
      if (usable(result) && count > 0) result = ncclAllReduce(sums, sums, count, ncclDouble, ncclSum, comm, stream);
      const ncclResult_t ended = ncclGroupEnd();
      return usable(result) ? ended : result;
    });
  }
  static constexpr std::size_t stride(std::size_t count) noexcept {
    return sizeof(RecordHead) + count * sizeof(double);
  }
  static bool usable(ncclResult_t result) noexcept { return result == ncclSuccess || result == ncclInProgress; }
  void count(std::size_t doubles) noexcept {
    ++traffic_.exchanges;
    traffic_.bytes += doubles * sizeof(double);
  }

  std::shared_ptr<NcclGroup> group_;
  Traffic traffic_{};
};

std::shared_ptr<Communicator> connect(const NcclId& id, int rank, RankNames names, int number, Queue& queue,
                                      const Patience& patience, const SideChannels& channels,
                                      const std::shared_ptr<HostExchanges>& pending) {
  const auto size = static_cast<int>(names.size());
  OwnComm comm = connect_nccl(id, rank, size, names[static_cast<std::size_t>(rank)], queue, patience);
  auto group =
      std::make_shared<NcclGroup>(comm.get(), true, queue, patience, channels, std::move(names), number, pending);
  (void)comm.release();  // the group's from here on
  return std::make_shared<NcclCommunicator>(std::move(group));
}

}  // namespace

NcclId NcclId::make() {
  ncclUniqueId unique;
  expect_nccl(ncclGetUniqueId(&unique), nullptr, "making the id of an NCCL group");
  NcclId id;
  std::memcpy(id.bytes.data(), &unique, sizeof unique);
  return id;
}

std::shared_ptr<Communicator> nccl(void* comm, Queue& queue, const Patience& patience) {
  expect(comm != nullptr, Code::invalid_argument, "the NCCL communicator is null, must be an ncclComm_t");
  expect_sound(queue, 0, 1, patience);
  return std::make_shared<NcclCommunicator>(
      std::make_shared<NcclGroup>(static_cast<ncclComm_t>(comm), false, queue, patience, SideChannels{}));
}

std::shared_ptr<Communicator> nccl(const NcclId& id, int rank, int size, Queue& queue, const Patience& patience) {
  expect_sound(queue, rank, size, patience);
  return connect(id, rank, numbered(size), rank, queue, patience, {});
}

std::shared_ptr<Communicator> nccl_over(const std::shared_ptr<Communicator>& bootstrap, Queue& queue,
                                        const Patience& patience) {
  expect(bootstrap != nullptr, Code::invalid_argument,
         "the bootstrap of an NCCL group is null, must be a communicator");
  expect_sound(queue, bootstrap->rank(), bootstrap->size(), patience);
  Message message{Header("nccl", Direction::agreement, 0), std::vector<double>(IdWords{}.size(), 0.0), 0, {}};
  if (bootstrap->rank() == 0) put(NcclId::make(), message.payload.data());
  const Message sum = bootstrap->exchange(std::move(message), queue);
  RankNames names;
  for (int rank = 0; rank < bootstrap->size(); ++rank) names.push_back(bootstrap->name_of(rank));
  return connect(id_from(sum.payload.data()), bootstrap->rank(), std::move(names), bootstrap->rank(), queue, patience,
                 {nullptr, bootstrap});
}

std::shared_ptr<Communicator> nccl_over(const Meeting& meeting, Queue& queue, const Patience& patience) {
  expect_sound(queue, meeting.rank, meeting.size, patience);
  std::vector<std::byte> bytes;
  if (meeting.rank == 0) {
    const NcclId id = NcclId::make();
    bytes.assign(id.bytes.begin(), id.bytes.end());
  }
  auto gathering = std::make_shared<Gathering>(meeting, std::move(bytes), patience);
  const NcclId id = id_from(gathering->bytes());
  return connect(id, meeting.rank, numbered(meeting.size), meeting.rank, queue, patience,
                 {std::move(gathering), nullptr});
}

std::shared_ptr<Communicator> nccl_over(const std::string& path, const std::string& run, int rank, int size,
                                        Queue& queue, const Patience& patience) {
  expect_sound(queue, rank, size, patience);
  std::vector<std::byte> bytes;
  if (rank == 0) {
    const NcclId id = NcclId::make();
    bytes.assign(id.bytes.begin(), id.bytes.end());
  }
  const NcclId id = id_from(meet_in_file(path, run, rank, bytes, patience));
  auto group = connect(id, rank, numbered(size), rank, queue, patience, {});
  if (rank == 0) std::remove(path.c_str());
  return group;
}

}  // namespace allnorm
