// The life of an ncclComm_t: connecting without blocking, calls one at a time, aborting what hangs.
#include "src/transport/nccl_group.hpp"

#include <cstring>

namespace allnorm {

void expect_nccl(ncclResult_t result, ncclComm_t comm, const std::string& tried) {
  if (result == ncclSuccess) return;
  std::string text = tried + " failed: " + ncclGetErrorString(result);
  const char* const last = ncclGetLastError(comm);
  if (last != nullptr && *last != '\0') text += ": " + std::string(last);
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  for (char& c : text)
    if (c == '\n') c = ' ';
  fail(Code::transport, text);
}

ncclComm_t connect_nccl(const NcclId& id, int rank, int size, const Queue& queue, const Patience& patience) {
  const cuda::DeviceGuard guard(queue.device().index);
  ncclUniqueId unique;
  static_assert(sizeof unique == sizeof id.bytes);
  std::memcpy(&unique, id.bytes.data(), sizeof unique);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const std::string tried = "NCCL's communicator of rank " + std::to_string(rank) + " of " + std::to_string(size);
  Deadline deadline(patience, patience.first_timeout);
  ncclComm_t comm = nullptr;
  ncclResult_t state = ncclCommInitRankConfig(&comm, size, unique, rank, &config);
  while (state == ncclInProgress) {
    if (deadline.over()) {
      ncclCommAbort(comm);
      fail(Code::timeout, tried + " is not connected after " + deadline.text() + ": a rank is missing or late");
    }
    deadline.relax();
    expect_nccl(ncclCommGetAsyncError(comm, &state), comm, tried);
  }
  try {
    expect_nccl(state, comm, tried);
  } catch (const Error&) {
    if (comm != nullptr) ncclCommAbort(comm);
    throw;
  }
  return comm;
}

NcclGroup::NcclGroup(ncclComm_t comm, bool own, Queue& queue, const Patience& patience, SideChannels channels,
                     std::shared_ptr<HostExchanges> pending)
    : comm_(comm),
      own_(own),
      device_(queue.device().index),
      patience_(patience),
      channels_(std::move(channels)),
      pending_(std::move(pending)),
      counts_(2, queue),
      reports_(device_, counts_.data()),
      watcher_(cuda::Watcher::of_process()) {
  expect_nccl(ncclCommUserRank(comm, &rank_), comm, "asking NCCL for the rank");
  expect_nccl(ncclCommCount(comm, &size_), comm, "asking NCCL for the number of ranks");
  int device = 0;
  expect_nccl(ncclCommCuDevice(comm, &device), comm, "asking NCCL for the GPU");
  expect(device == device_, Code::invalid_argument, [&] {
    return "the queue is on " + to_string(queue.device()) + ", must be on cuda:" + std::to_string(device) +
           " as the NCCL communicator";
  });
  watcher_->add(*this);
}

NcclGroup::~NcclGroup() {
  watcher_->remove(*this);
  forget_host_exchanges(*this);
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

void NcclGroup::begin_use() {
  busy_until_ = now(patience_) + (used_ ? patience_.timeout : patience_.first_timeout);
  used_ = true;
}

// A communicator that does not block may still be connecting: nothing else may be enqueued before that is done.
void NcclGroup::settle(ncclResult_t result, const char* tried) {
  Deadline deadline(patience_, busy_until_ - now(patience_));
  while (result == ncclInProgress) {
    if (deadline.over()) {
      kill(Code::timeout,
           std::string(tried) + " is not begun after " + deadline.text() + ": a rank is missing or late");
      break;
    }
    deadline.relax();
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    result = asked == ncclSuccess ? state : asked;
  }
  if (!dead_ && result != ncclSuccess) {
    try {
      expect_nccl(result, comm_, tried);
    } catch (const Error& error) {
      kill(error.code(), error.message());
    }
  }
  if (failure_.is_set()) end_use();
  failure_.rethrow();
}

void NcclGroup::kill(Code code, const std::string& why) noexcept {
  failure_.set(code, why);
  if (!dead_.exchange(true)) ncclCommAbort(comm_);
}

void NcclGroup::end(Code code, const std::string& why) noexcept {
  const std::lock_guard lock(use_);
  kill(code, why);
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
    std::unique_lock lock(use_, std::try_to_lock);
    if (!lock) {
      // A thread is inside a call of NCCL. That may last; but where ranks are missing only an abort gets it out.
      const double until = busy_until_;
      if (!told.empty())
        kill(Code::aborted, told);
      else if (until > 0 && now(patience_) > until)
        kill(Code::timeout, "a call of NCCL does not return: a rank is missing or late");
      return;
    }
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    if (asked != ncclSuccess) state = asked;
    if (!told.empty()) {
      kill(Code::aborted, told);
    } else if (state != ncclSuccess && state != ncclInProgress) {
      try {
        expect_nccl(state, comm_, "an exchange over NCCL");
      } catch (const Error& error) {
        if (channels_.gathering)
          channels_.gathering->tell("rank " + std::to_string(rank_) + " failed: " + error.message());
        kill(Code::transport, error.message());
      }
    } else if (const std::string late = reports_.late(patience_); !late.empty()) {
      kill(Code::timeout, late);
    }
  } catch (...) {
    kill(Code::transport, "the watcher of an NCCL group ran out of memory");
  }
}

}  // namespace allnorm
