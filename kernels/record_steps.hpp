// Steps of operations that exchange: this rank's record gets its head, the heads of all ranks are judged, and the state
// takes its turn. What a Norm's halves do within their launches (kernels/cuda/records.cuh, heads.cuh).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/heads.hpp"
#include "kernels/steps.hpp"

namespace allnorm::steps {

/// What the ranks hold alike, hashed in parts: part p is of every parts-th channel from p on.
struct HashChannels {
  static constexpr std::int64_t parts = 64;
  LayerState state{};
  Hashes* made = nullptr;  // (parts)

  ALLNORM_HOST_DEVICE void operator()(std::int64_t p) const {
    Hashes sum;
    for (std::int64_t c = p; c < state.channels; c += parts) sum.add(hashes_of(state, c));
    made[p] = sum;
  }
};

/// The head of a forward record, and the number of values behind its moments; its payload is others'. For one group.
struct OpenForward {
  std::byte* record = nullptr;
  Header header{};
  Rules rules{};
  LayerState state{};
  const Hashes* hashed = nullptr;  // (HashChannels::parts)
  std::int64_t doubles = 0;        // of the payload
  double count = 0;                // this rank's values of a group
  Reporter reporter{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t) const {
    Hashes hashes = hashes_of(state);
    for (std::int64_t p = 0; p < HashChannels::parts; ++p) hashes.add(hashed[p]);
    auto& head = *reinterpret_cast<RecordHead*>(record);
    head.header = header;
    head.flags = 0;
    head.count = static_cast<std::uint64_t>(doubles);
    head.reason[0] = '\0';
    write_header(rules, state, hashes, head.header);
    payload_of(record)[0] = count;
    report_started(reporter);
  }
};

/// The head of a backward record. For one group.
struct OpenBackward {
  std::byte* record = nullptr;
  Header header{};
  const std::int64_t* call = nullptr;  // the number of the forward call
  std::int64_t doubles = 0;
  Reporter reporter{};

  ALLNORM_HOST_DEVICE void operator()(std::int64_t) const {
    auto& head = *reinterpret_cast<RecordHead*>(record);
    head.header = header;
    head.flags = 0;
    head.count = static_cast<std::uint64_t>(doubles);
    head.reason[0] = '\0';
    head.header.set(Field::call, static_cast<std::uint64_t>(*call));
    report_started(reporter);
  }
};

/// Whether something is wrong with the head of a rank. For each rank whose record was gathered.
struct CompareHeads {
  Gathered gathered{};
  const std::byte* own = nullptr;
  std::uint64_t* faults = nullptr;  // (ranks)

  ALLNORM_HOST_DEVICE void operator()(std::int64_t rank) const {
    faults[rank] = Heads{gathered, own}.is_faulty(static_cast<int>(rank)) ? 1 : 0;
  }
};

/// Whether the exchange fails, told to the host. For one group.
struct JudgeHeads {
  Gathered gathered{};
  const std::byte* own = nullptr;
  const std::uint64_t* faults = nullptr;  // (ranks)
  Reporter reporter{};
  std::uint64_t* fails = nullptr;

  ALLNORM_HOST_DEVICE void operator()(std::int64_t) const {
    const Heads heads{gathered, own};
    *fails = 0;
    for (int rank = 0; heads.given() && rank < gathered.ranks; ++rank) *fails |= faults[rank];
    heads.tell(reporter, *fails != 0 ? heads.judge() : Verdict{ExchangeReport::fine, 0});
  }
};

/// What ranks sent to be added.
struct SumRanks {
  Gathered gathered{};
  double* sums = nullptr;

  ALLNORM_HOST_DEVICE void operator()(std::int64_t i) const { sums[i] = summed(gathered, i); }
};

/// The last step of a call: what it wrote becomes the state, unless it fails. For one group.
struct Advance {
  Rules rules{};
  LayerState state{};
  const Turn* turn = nullptr;

  ALLNORM_HOST_DEVICE void operator()(std::int64_t) const {
    *state.last = *turn;
    if (turn->fails) return;
    state.next() = advanced(rules, state.now(), *turn);
    ++*state.parity;
  }
};

}  // namespace allnorm::steps
