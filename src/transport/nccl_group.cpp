// The life of an ncclComm_t: connecting without blocking, calls one at a time, aborting what hangs.
#include "src/transport/nccl_group.hpp"

#include <cstring>

namespace allnorm {

void expect_nccl(ncclResult_t result, ncclComm_t comm, const std::string& tried, const char* misuse) {
  if (result == ncclSuccess) return;
  std::string text = tried + " failed: " + ncclGetErrorString(result);
  const char* const last = ncclGetLastError(comm);
  if (last != nullptr && *last != '\0') text += ": " + std::string(last);
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  for (char& c : text)
    if (c == '\n') c = ' ';
  if (result == ncclInvalidUsage) text += misuse;
  fail(Code::transport, text);
}

RankNames numbered(int ranks) {
  RankNames names;
  for (int rank = 0; rank < ranks; ++rank) names.push_back("rank " + std::to_string(rank));
  return names;
}

OwnComm connect_nccl(const NcclId& id, int rank, int size, const std::string& name, const Queue& queue,
                     const Patience& patience) {
  const cuda::DeviceGuard guard(queue.device().index);
  ncclUniqueId unique;
  static_assert(sizeof unique == sizeof id.bytes);
  std::memcpy(&unique, id.bytes.data(), sizeof unique);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  constexpr const char* misuse = ": ranks must each have a GPU of their own or an NCCL_HOSTID of their own";
  const std::string tried = "NCCL's communicator of " + std::to_string(size) + " ranks on " + name;
  Deadline deadline(patience, patience.first_timeout);
  ncclComm_t made = nullptr;
  ncclResult_t state = ncclCommInitRankConfig(&made, size, unique, rank, &config);
  OwnComm comm(made);
  while (state == ncclInProgress) {
    expect(!deadline.over(), Code::timeout,
           [&] { return tried + " is not connected after " + deadline.text() + ": a rank is missing or late"; });
    deadline.relax();
    expect_nccl(ncclCommGetAsyncError(made, &state), made, tried, misuse);
  }
  expect_nccl(state, made, tried, misuse);
  return comm;
}

NcclGroup::NcclGroup(ncclComm_t comm, bool own, Queue& queue, const Patience& patience, SideChannels channels,
                     RankNames names, std::optional<int> number, std::shared_ptr<HostExchanges> pending)
    : comm_(comm),
      own_(own),
      device_(queue.device().index),
      patience_(patience),
      channels_(std::move(channels)),
      names_(std::move(names)),
      pending_(std::move(pending)),
      counts_(2, queue),
      reports_(device_, counts_.data()),
      watcher_(cuda::Watcher::of_process()) {
  expect_nccl(ncclCommUserRank(comm, &rank_), comm, "asking NCCL for the rank");
  expect_nccl(ncclCommCount(comm, &size_), comm, "asking NCCL for the number of ranks");
  if (names_.empty()) names_ = numbered(size_);
  number_ = number.value_or(rank_);
  int device = 0;
  expect_nccl(ncclCommCuDevice(comm, &device), comm, "asking NCCL for the GPU");
  expect(device == device_, Code::invalid_argument, [&] {
    return "the queue is on " + to_string(queue.device()) + ", must be on cuda:" + std::to_string(device) +
           " as the NCCL communicator";
  });
  queue.wait();  // the counts are zero for whichever queue comes first
  watcher_->add(*this);
}

NcclGroup::~NcclGroup() {
  finish_host_exchanges(*this);
  watcher_->remove(*this);
  if (dead_ || !own_) return;
  // To destroy it in order its work must be done: a group that still has some at the deadline is aborted.
  try {
    Deadline deadline(patience_, patience_.timeout);
    ncclResult_t state = ncclCommFinalize(comm_);
    while (state == ncclInProgress && !deadline.over()) {
      deadline.relax();
      if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess) break;
    }
    if (state == ncclSuccess)
      ncclCommDestroy(comm_);
    else
      ncclCommAbort(comm_);
  } catch (...) {
    ncclCommAbort(comm_);
  }
}

void NcclGroup::expect_usable(const Queue& queue) const {
  failure_.rethrow();
  const Device own{DeviceKind::cuda, device_};
  expect(queue.device() == own, Code::invalid_argument, [&] {
    return "the queue of an exchange is on " + to_string(queue.device()) + ", must be on " + to_string(own) +
           " as the group's rank";
  });
}

void NcclGroup::begin_call() {
  call_ends_ = now(patience_) + (used_ ? patience_.timeout : patience_.first_timeout);
  used_ = true;
  calling_ = true;
}

// A communicator that does not block may still be connecting: nothing else may be enqueued before that is done.
void NcclGroup::settle(ncclResult_t result, const char* tried) {
  Deadline deadline(patience_, call_ends_ - now(patience_));
  while (!dead_ && result == ncclInProgress) {
    if (deadline.over())
      give_up(std::string(tried) + " is not begun after " + deadline.text() + ": a rank is missing or late");
    if (failure_.is_set()) {  // by the watcher, perhaps
      kill();
      break;
    }
    deadline.relax();
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    result = asked == ncclSuccess ? state : asked;
  }
  if (!dead_ && result != ncclSuccess) {
    fail_with(result, tried);
    kill();
  }
  failure_.rethrow();
}

void NcclGroup::fail_with(ncclResult_t result, const std::string& tried) {
  try {
    expect_nccl(result, comm_, tried);
  } catch (const Error& error) {
    failure_.set(error.code(), error.message());
  }
}

void NcclGroup::kill() noexcept {
  if (!dead_.exchange(true)) ncclCommAbort(comm_);
}

void NcclGroup::end(Code code, const std::string& why) noexcept {
  failure_.set(code, why);
  const std::lock_guard lock(use_);
  kill();
}

void NcclGroup::give_up(const std::string& line) {
  if (failure_.is_set()) return;
  if (patience_.report) patience_.report({line, number_, speaks(), {}});
  failure_.set(Code::timeout, line);
}

void NcclGroup::abort(const std::string& why) noexcept {
  if (channels_.gathering) channels_.gathering->tell(why);
  if (channels_.bootstrap) channels_.bootstrap->abort(Error(Code::aborted, why));
  end(Code::aborted, why);
}

void NcclGroup::look() noexcept {
  if (dead_) return;
  try {
    const std::string told = channels_.gathering ? channels_.gathering->heard() : std::string();
    if (!told.empty()) failure_.set(Code::aborted, told);
    const std::unique_lock lock(use_, std::try_to_lock);
    if (!lock) {
      // A thread uses the communicator. Where it waits in our code it sees the failure; inside NCCL only an abort gets
      // it out.
      if (!calling_) return;
      if (now(patience_) > call_ends_) give_up("a call of NCCL does not return: a rank is missing or late");
      looks_while_calling_ += failure_.is_set();
      if (looks_while_calling_ > 1) kill();
      return;
    }
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    if (asked != ncclSuccess) state = asked;
    if (state != ncclSuccess && state != ncclInProgress && !failure_.is_set()) {
      fail_with(state, "an exchange over NCCL");
      if (channels_.gathering) channels_.gathering->tell(own_name() + " lost NCCL: " + ncclGetErrorString(state));
    }
    if (!failure_.is_set())
      if (const std::string late = reports_.late(patience_, number_, speaks()); !late.empty())
        failure_.set(Code::timeout, late);
    if (failure_.is_set()) kill();
  } catch (...) {
    failure_.set(Code::transport, "the watcher of an NCCL group ran out of memory");
  }
}

}  // namespace allnorm
