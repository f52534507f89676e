// NCCL among threads: a collective is a function in the stream's order that waits there, not on the host.
#include "fake_nccl.hpp"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace {

struct Part {
  bool there = false, taken = false;
  bool reduces = false;
  std::vector<std::byte> bytes;
};
using Round = std::vector<Part>;  // [rank]

// The ranks of one id.
struct Clique {
  std::mutex mutex;
  std::condition_variable changed;
  int size = 0, joined = 0;
  int connected = 0;  // ranks that have begun a collective
  bool refused = false;
  std::vector<std::string> places;        // [rank] host and GPU
  std::map<std::uint64_t, Round> rounds;  // by number, while some rank has yet to take its result
};

struct Task {
  ncclComm_t comm;
  const void* send;
  void* receive;
  std::size_t bytes;
  bool reduces;
  bool captured;
};

std::mutex registry_mutex;
std::map<std::string, std::shared_ptr<Clique>> cliques;
std::vector<std::unique_ptr<ncclComm>> all;  // kept after their end, so that use after it can be told
std::uint64_t ids = 0;
std::atomic<int> misused{0}, finished{0};
thread_local std::string own_host_id;
thread_local int group_depth = 0;
thread_local ncclComm_t connecting = nullptr;  // what the calls of a group leave in progress

}  // namespace

struct ncclComm {
  std::shared_ptr<Clique> clique;
  int rank = 0, device = 0;
  bool blocking = true;
  std::atomic<bool> gone{false}, aborted{false};
  std::atomic<int> error{ncclSuccess};
  std::atomic<int> busy_looks{0};        // while positive the communicator says that it is still in progress
  bool connected = false;                // had a collective
  std::atomic<std::uint64_t> rounds{0};  // begun by this rank's stream
  std::atomic<int> outstanding{0};       // enqueued, not captured, not done
  std::atomic<int> running{0};
  std::mutex tasks_mutex;
  std::vector<std::unique_ptr<Task>> tasks;  // graphs may run them again
};

namespace {

bool sound(ncclComm_t comm) {
  if (comm != nullptr && !comm->gone) return true;
  ++misused;
  return false;
}

bool all_match(const Round& round) {
  for (const Part& part : round)
    if (!part.there || part.bytes.size() != round[0].bytes.size() || part.reduces != round[0].reduces) return false;
  return true;
}

void deliver(const Task& task, const Round& round) {
  auto* to = static_cast<std::byte*>(task.receive);
  if (!task.reduces) {
    for (const Part& part : round) {
      std::memcpy(to, part.bytes.data(), part.bytes.size());
      to += part.bytes.size();
    }
    return;
  }
  // from the last rank to the first: the order of the real one is not that of the ranks either
  for (std::size_t at = 0; at < task.bytes; at += sizeof(double)) {
    double sum = 0;
    for (auto part = round.rbegin(); part != round.rend(); ++part) {
      double value;
      std::memcpy(&value, part->bytes.data() + at, sizeof value);
      sum += value;
    }
    std::memcpy(to + at, &sum, sizeof sum);
  }
}

void run(void* data) {
  const Task& task = *static_cast<Task*>(data);
  ncclComm& comm = *task.comm;
  Clique& clique = *comm.clique;
  ++comm.running;
  {
    std::unique_lock lock(clique.mutex);
    const std::uint64_t number = comm.rounds++;
    Round& round = clique.rounds[number];
    round.resize(static_cast<std::size_t>(clique.size));
    Part& own = round[static_cast<std::size_t>(comm.rank)];
    if (!comm.aborted) {
      const auto* from = static_cast<const std::byte*>(task.send);
      own = {true, false, task.reduces, {from, from + task.bytes}};
      clique.changed.notify_all();
      clique.changed.wait(lock, [&] { return comm.aborted || all_match(round); });
      if (!comm.aborted) {
        deliver(task, round);
        ++finished;
        own.taken = true;
        bool over = true;
        for (const Part& part : round) over &= part.taken;
        if (over) clique.rounds.erase(number);
      }
    }
  }
  if (!task.captured) --comm.outstanding;
  --comm.running;
}

ncclResult_t collective(const void* send, void* receive, std::size_t bytes, bool reduces, ncclComm_t comm,
                        cudaStream_t stream) {
  if (!sound(comm)) return ncclInvalidArgument;
  if (comm->busy_looks > 0) ++misused;  // the call before is not over
  int device = -1;
  if (cudaGetDevice(&device) != cudaSuccess || device != comm->device) ++misused;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) != cudaSuccess) return ncclUnhandledCudaError;
  const bool captured = status == cudaStreamCaptureStatusActive;
  auto task = std::make_unique<Task>(Task{comm, send, receive, bytes, reduces, captured});
  Task* const kept = task.get();
  {
    const std::lock_guard lock(comm->tasks_mutex);
    comm->tasks.push_back(std::move(task));
  }
  if (!captured) ++comm->outstanding;
  if (cudaLaunchHostFunc(stream, &run, kept) != cudaSuccess) return ncclUnhandledCudaError;
  if (std::exchange(comm->connected, true)) return ncclSuccess;
  if (comm->blocking) {  // the first collective returns when all ranks have begun theirs
    Clique& clique = *comm->clique;
    std::unique_lock lock(clique.mutex);
    ++clique.connected;
    clique.changed.notify_all();
    clique.changed.wait(lock, [&] { return comm->aborted || clique.connected >= clique.size; });
    return comm->aborted ? ncclRemoteError : ncclSuccess;
  }
  // the first collective of one that does not block goes on connecting for a while
  if (group_depth > 0) {
    connecting = comm;
    return ncclSuccess;
  }
  comm->busy_looks = 2;
  return ncclInProgress;
}

std::size_t size_of(ncclDataType_t type) { return type == ncclDouble || type == ncclUint64 ? 8 : 1; }

// Ends a communicator; its stream's functions return at once.
ncclResult_t end(ncclComm_t comm) {
  if (!sound(comm)) return ncclInvalidArgument;
  comm->gone = true;
  {
    const std::lock_guard lock(comm->clique->mutex);
    comm->aborted = true;
  }
  comm->clique->changed.notify_all();
  return ncclSuccess;
}

}  // namespace

namespace fake_nccl {

void set_host_id(const std::string& id) { own_host_id = id; }
void fail_async(int rank, ncclResult_t error) {
  const std::lock_guard lock(registry_mutex);
  for (const auto& comm : all)
    if (comm->rank == rank && !comm->gone) comm->error = error;
}
int living() {
  const std::lock_guard lock(registry_mutex);
  int count = 0;
  for (const auto& comm : all) count += !comm->gone;
  return count;
}
int collectives() { return finished; }
int misuses() { return misused; }
void reset() {
  misused = 0;
  finished = 0;
}

}  // namespace fake_nccl

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const std::lock_guard lock(registry_mutex);
  ++ids;
  for (std::size_t i = 0; i < sizeof id->internal; ++i)  // all bytes matter
    id->internal[i] = static_cast<char>((ids * 2654435761u + i * 40503u) >> (i % 24));
  std::memcpy(id->internal, &ids, sizeof ids);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* made, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
  if (ranks < 1 || rank < 0 || rank >= ranks) return ncclInvalidArgument;
  auto comm = std::make_unique<ncclComm>();
  comm->rank = rank;
  comm->blocking = config == nullptr || config->blocking != 0;
  if (cudaGetDevice(&comm->device) != cudaSuccess) return ncclUnhandledCudaError;
  {
    const std::lock_guard lock(registry_mutex);
    auto& clique = cliques[std::string(id.internal, sizeof id.internal)];
    if (!clique) clique = std::make_shared<Clique>();
    comm->clique = clique;
  }
  const std::shared_ptr<Clique> clique = comm->clique;
  *made = comm.get();
  {
    const std::lock_guard lock(registry_mutex);
    all.push_back(std::move(comm));
  }
  std::unique_lock lock(clique->mutex);
  const std::string place = own_host_id + "/" + std::to_string((*made)->device);
  if (clique->joined == 0) clique->size = ranks;
  if (clique->size != ranks) clique->refused = true;
  for (const std::string& other : clique->places) clique->refused |= other == place;
  clique->places.push_back(place);
  ++clique->joined;
  clique->changed.notify_all();
  if (!(*made)->blocking) return ncclInProgress;
  clique->changed.wait(lock, [&] { return clique->joined >= clique->size; });
  return clique->refused ? ncclInvalidUsage : ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(comm, ranks, id, rank, nullptr);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  if (!sound(comm)) return ncclInvalidArgument;
  return comm->outstanding > 0 ? ncclInProgress : ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (sound(comm) && comm->outstanding > 0) ++misused;
  return end(comm);
}

ncclResult_t ncclCommAbort(ncclComm_t comm) { return end(comm); }

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  if (!sound(comm)) return ncclInvalidArgument;
  *error = static_cast<ncclResult_t>(comm->error.load());
  if (*error != ncclSuccess) return ncclSuccess;
  Clique& clique = *comm->clique;
  const std::lock_guard lock(clique.mutex);
  if (clique.joined < clique.size)
    *error = ncclInProgress;
  else if (clique.refused)
    *error = ncclInvalidUsage;
  else if (comm->busy_looks > 0 && --comm->busy_looks > 0)
    *error = ncclInProgress;
  return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int* count) {
  if (!sound(comm)) return ncclInvalidArgument;
  *count = comm->clique->size;
  return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int* device) {
  if (!sound(comm)) return ncclInvalidArgument;
  *device = comm->device;
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) {
  if (!sound(comm)) return ncclInvalidArgument;
  *rank = comm->rank;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
    default:
      return "unhandled error";
  }
}
const char* ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclAllGather(const void* send, void* receive, std::size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  return collective(send, receive, count * size_of(type), false, comm, stream);
}
ncclResult_t ncclAllReduce(const void* send, void* receive, std::size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  if (type != ncclDouble || op != ncclSum) return ncclInvalidArgument;
  return collective(send, receive, count * size_of(type), true, comm, stream);
}

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (--group_depth < 0) ++misused;
  if (group_depth > 0 || connecting == nullptr) return ncclSuccess;
  std::exchange(connecting, nullptr)->busy_looks = 2;
  return ncclInProgress;
}
