// The halves of a call in its caller's memory.
#include "allnorm/halves.hpp"

#include <algorithm>
#include <array>
#include <exception>
#include <utility>
#include <vector>

#include "allnorm/sizes.hpp"
#include "kernels/group_steps.hpp"
#include "src/failures.hpp"
#include "src/heads.hpp"
#include "src/norm_impl.hpp"
#include "src/parameters.hpp"

namespace allnorm {

namespace {

/// A rank's place among ranks whose exchange is their caller's.
class CallersGroup final : public Communicator {
 public:
  CallersGroup(int rank, int size) : rank_(rank), size_(size) {
    expect(size >= 1 && 0 <= rank && rank < size, Code::invalid_argument, [&] {
      return "rank is " + std::to_string(rank) + ", must be from 0 to " + std::to_string(size - 1) + " of " +
             std::to_string(size) + " ranks";
    });
  }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }
  std::string name_of(int rank) const override { return "rank " + std::to_string(rank); }
  std::string_view transport() const noexcept override { return "caller"; }
  Pending start_exchange(Message, Queue&) override { refuse(); }
  Gathered gather(const Record&, Queue&) override { refuse(); }
  std::shared_ptr<Communicator> split(std::int64_t, Queue&) override { refuse(); }
  void decline(const Error&) noexcept override {}
  void abort(const Error&) noexcept override {}
  Traffic traffic() const noexcept override { return {}; }

 private:
  [[noreturn]] static void refuse() {
    fail(Code::unsupported, "the exchange between halves of a call is its caller's");
  }

  int rank_, size_;
};

/// Arrays one after the other in a block; without one only how long it must be.
class Places {
 public:
  explicit Places(std::byte* block) noexcept : block_(block) {}

  template <class T>
  T* next(std::int64_t count) noexcept {
    T* const at = block_ != nullptr ? reinterpret_cast<T*>(block_ + used_) : nullptr;
    used_ += (index(count) * sizeof(T) + 7) / 8 * 8;
    return at;
  }
  std::size_t used() const noexcept { return used_; }

 private:
  std::byte* block_;
  std::size_t used_ = 0;
};

/// How a history begins: what it is, in words of 64 bits.
struct HistoryHead {
  static constexpr std::uint64_t magic_value = 0x686d726f6e6c6c61;  // "allnormh"
  static constexpr std::uint64_t version_value = 1;

  std::uint64_t magic = magic_value, version = version_value;
  std::int64_t bytes = 0, channels = 0, window = 1, minibatches = 1;
  std::int64_t fan_in = 0, mean_rows = 0, wide = 0;  // of the derivatives; 0 without them

  friend bool operator==(const HistoryHead&, const HistoryHead&) noexcept = default;
};

/// Then come counters, the batch so far (5, C), and with a window its arrays: Counters and Ring of
/// kernels/layer_state.hpp, but for `past`.
struct History {
  Counters* counters = nullptr;
  double* batch = nullptr;
  Ring ring{};

  static constexpr std::int64_t batch_fields = LayerState::fields_with_history - LayerState::fields_without_history;

  History(const HistoryHead& of, Places& block) noexcept {
    block.next<HistoryHead>(1);
    counters = block.next<Counters>(1);
    batch = block.next<double>(batch_fields * of.channels);
    if (of.window == 1) return;
    ring.slots = of.window;
    ring.count = block.next<double>(of.window);
    ring.mean = block.next<double>(of.window * of.channels);
    ring.var = block.next<double>(of.window * of.channels);
    ring.center = block.next<double>(of.channels);
    if (of.fan_in == 0) return;
    ring.wide = of.wide != 0;
    ring.fan_in = of.fan_in;
    ring.mean_rows = of.mean_rows;
    const auto derivatives = [&](std::int64_t rows) -> void* {
      const std::int64_t values = of.window * rows * of.fan_in;
      if (ring.wide) return block.next<double>(values);
      return block.next<float>(values);
    };
    ring.dmean = derivatives(of.mean_rows);
    ring.dvar = derivatives(of.channels);
    ring.weight = derivatives(of.channels);
  }
};

/// The window's arrays from one place to another.
void copy_window(const LayerState& from, const LayerState& to, Queue& queue) {
  const Ring &a = from.ring, &b = to.ring;
  const auto copy = [&](const void* source, void* target, std::int64_t values, std::size_t size) {
    copy_on_device(target, source, index(values) * size, queue);
  };
  const std::int64_t channels = from.channels;
  if (a.slots == 0) return;
  copy(a.count, b.count, a.slots, sizeof(double));
  copy(a.mean, b.mean, a.slots * channels, sizeof(double));
  copy(a.var, b.var, a.slots * channels, sizeof(double));
  copy(a.center, b.center, channels, sizeof(double));
  if (a.fan_in == 0) return;
  const std::size_t size = a.wide ? sizeof(double) : sizeof(float);
  copy(a.dmean, b.dmean, a.slots * a.mean_rows * a.fan_in, size);
  copy(a.dvar, b.dvar, a.slots * channels * a.fan_in, size);
  copy(a.weight, b.weight, a.slots * channels * a.fan_in, size);
}

}  // namespace

class Halves::Impl {
 public:
  Impl(const Layer& layer, std::int64_t channels, int rank, int ranks, Queue& queue, std::string name)
      : norm(layer, channels, std::make_shared<CallersGroup>(rank, ranks), queue, std::move(name), false),
        exchanges(ranks > 1 && rules().takes_moments() && (layer.options.training || !norm.has_running())) {
    // A call there ends before its values are known, and leaves nothing that a later one could ask.
    expect(layer.options.nonfinite != NonFinite::fail || queue.device().kind == DeviceKind::cpu, Code::unsupported,
           "attribute nonfinite is fail, must be propagate or skip_update for halves of calls on a GPU");
  }

  const Rules& rules() const noexcept { return norm.memory_.rules(); }
  bool has_history() const noexcept { return rules().persists && (rules().window > 1 || rules().minibatches > 1); }
  int rank() const noexcept { return norm.group_->rank(); }
  FrameSource source() const noexcept {
    if (norm.has_running() && !norm.layer_.options.training) return FrameSource::running;
    return rules().takes_moments() ? FrameSource::call : FrameSource::unit;
  }
  std::int64_t doubles(Direction direction, std::int64_t groups) const noexcept {
    if (direction == Direction::backward) return 2 * groups;
    return steps::Layout{groups}.size(rules().compensates() ? rules().window - 1 : 0);
  }
  /// Of the records that the queue's kernels read.
  Gathered gathered(const std::byte* records, Direction direction, std::int64_t groups) const noexcept {
    return {records, sizeof(RecordHead) + index(doubles(direction, groups)) * sizeof(double), norm.group_->size()};
  }

  WeightShape weights_of(const ConstTensorView& conv_weight) const {
    if (!rules().compensates() || !conv_weight.given()) return {};
    const Shape& shape = conv_weight.shape;
    return {norm.channels_, shape.product(1, shape.rank()), norm.layer_.options.convolution.groups};
  }
  HistoryHead head_of(const WeightShape& weights, bool wide) const {
    HistoryHead head;
    head.channels = norm.channels_;
    head.window = rules().window;
    head.minibatches = rules().minibatches;
    if (weights.fan_in > 0) {
      expect_fits("conv_weight's fan-in", weights.fan_in,
                  {4 * head.window, std::max<std::int64_t>(1, head.channels), std::int64_t{sizeof(double)}});
      head.fan_in = weights.fan_in;
      head.mean_rows = weights.mean_rows;
      head.wide = wide ? 1 : 0;
    }
    Places block(nullptr);
    History(head, block);
    head.bytes = static_cast<std::int64_t>(block.used());
    return head;
  }
  /// The head of a history, in memory of the queue's device. Throws invalid_input unless it is one of such a layer, and
  /// where `expected` says of which weights, for those. Waits for the queue.
  HistoryHead read_head(std::span<const std::byte> history, const HistoryHead& expected, Queue& queue) const {
    HistoryHead head;
    const auto is = [](const char* what, std::int64_t value, std::int64_t must) {
      expect(value == must, Code::invalid_input, [&] {
        return std::string(what) + " of the history is " + std::to_string(value) + ", must be " + std::to_string(must);
      });
    };
    const auto size = static_cast<std::int64_t>(history.size());
    if (history.size() >= sizeof head) {
      copy_to_host(&head, history.data(), sizeof head, queue);
      queue.wait();
    }
    expect(history.size() >= sizeof head && head.magic == HistoryHead::magic_value, Code::invalid_input, [&] {
      return "the history, of " + std::to_string(size) + " bytes, is none: it must be as start_history() made it";
    });
    is("the version", static_cast<std::int64_t>(head.version), HistoryHead::version_value);
    is("the number of channels", head.channels, expected.channels);
    is("the window", head.window, expected.window);
    is("the number of mini-batches", head.minibatches, expected.minibatches);
    if (expected.fan_in > 0) {
      is("conv_weight's fan-in", head.fan_in, expected.fan_in);
      is("attribute conv_groups", head.mean_rows, expected.mean_rows);
    }
    is("the length", size, head.bytes);
    is("the length", head_of({head.channels, head.fan_in, head.mean_rows}, head.wide != 0).bytes, head.bytes);
    return head;
  }

  /// A call's state: its own copy of what is small, in `work`, and where that comes from and goes to.
  struct Bound {
    LayerState call{};
    steps::Kept kept{};
  };
  LayerState lay_out_state(Places& work) const noexcept {
    LayerState call;
    call.counters = work.next<Counters>(2);
    call.parity = work.next<std::uint32_t>(1);
    call.last = work.next<Turn>(1);
    call.hits = work.next<Hits>(1);
    call.met = work.next<HitsMet>(1);
    if (!rules().persists) return call;
    call.channels = norm.channels_;
    call.fields = has_history() ? LayerState::fields_with_history : LayerState::fields_without_history;
    call.values = work.next<double>(2 * call.fields * call.channels);
    if (rules().window > 1) call.ring.past = work.next<double>((rules().window - 1) * 4 * call.channels);
    return call;
  }
  /// `source`: of the derivatives that a call brings. Where there is none, and `whole`, those of the history have their
  /// places too: a GPU's queue is then waited for, to read what they are of.
  Bound bind(const KeptState& state, const DerivativeSource* source, Places& work, Queue& queue,
             bool whole = false) const {
    Bound bound{lay_out_state(work), {}};
    const auto expect_given = [&](bool is, bool must, const char* what) {
      expect(is == must, Code::invalid_argument, [&] {
        return std::string(what) + (is ? " is given, must not be" : " is missing, must be given") + " for " +
               std::string(norm.layer_.row->name) + " as it is";
      });
    };
    const bool running = state.running_mean.given();
    expect_given(state.running_spread.given(), running && rules().scaled, "the running variance");
    expect_given(!state.history.empty(), has_history(), "a history");
    if (!running && !has_history()) return bound;
    expect_given(running, rules().persists, "running_mean");
    const Shape channels{norm.channels_};
    expect_parameter(state.running_mean, channels, queue, "running_mean");
    expect_parameter(state.running_spread, channels, queue, "the running variance");
    expect_memory(state.tracked.data, queue, "num_batches_tracked");
    expect(!state.tracked.given() || (state.tracked.dtype == DType::i64 && state.tracked.elements() == 1),
           Code::invalid_argument, "num_batches_tracked must be one i64");
    steps::Kept& kept = bound.kept;
    kept.mean = parameter(state.running_mean, 0);
    kept.spread = parameter(state.running_spread, 1);
    kept.next_mean = parameter_grad(state.running_mean);
    kept.next_spread = parameter_grad(state.running_spread);
    kept.tracked = static_cast<std::int64_t*>(state.tracked.data);
    if (!has_history()) return bound;
    HistoryHead head = source != nullptr ? head_of(source->shape, source->wide) : head_of({}, false);
    // A call on a GPU waits for nothing, and has only the size to go by; derivatives that it does not know come last.
    const bool knows = source != nullptr || !rules().compensates();
    if (queue.device().kind == DeviceKind::cpu || (whole && !knows))
      head = read_head(state.history, head, queue);
    else
      expect_size(state.history, head, knows);
    Places block(state.history.data());
    History history(head, block);
    kept.counters = history.counters;
    kept.batch = history.batch;
    history.ring.past = bound.call.ring.past;
    bound.call.ring = history.ring;
    return bound;
  }
  static void expect_size(std::span<const std::byte> history, const HistoryHead& head, bool exactly) {
    const std::size_t least = index(head.bytes), size = history.size();
    expect(exactly ? size == least : size >= least, Code::invalid_input, [&] {
      return "the history has " + std::to_string(size) + " bytes, must have " + (exactly ? "" : "at least ") +
             std::to_string(least);
    });
  }
  void take(const Bound& bound, Queue& queue) const {
    queue.ops().each({steps::TakeState{bound.kept, bound.call}}, 1 + bound.call.channels, queue);
  }
  void give(const Bound& bound, Queue& queue) const {
    queue.ops().each({steps::GiveState{bound.call, bound.kept}}, 1 + bound.call.channels, queue);
  }

  /// This rank's record, that its first half writes or is among those that a second half only reads.
  struct Records {
    std::byte* made = nullptr;
    const std::byte* all = nullptr;
  };
  /// Memory for a call of that many groups. Where nothing is exchanged the record is scratch too.
  NormImpl::Place place(Places& work, std::int64_t scratch, Direction direction, std::int64_t groups,
                        const Records& records) const noexcept {
    auto* const own = reinterpret_cast<std::byte*>(work.next<double>(scratch));
    const Gathered all = gathered(records.all, direction, groups);
    if (!exchanges) return {own, work.next<std::byte>(static_cast<std::int64_t>(all.stride))};
    if (records.all == nullptr) return {own, records.made};
    return {own, const_cast<std::byte*>(records.all) + index(rank()) * all.stride};
  }

  /// A call that takes moments, ready for its kernels.
  Bound open(NormImpl::ForwardCall& call, const ForwardInputs& in, const TensorView& output, const KeptState& state,
             const KeptFrame& frame, std::byte* work, const Records& records, Queue& queue) const {
    const Plan plan = norm.check(in, output, queue);
    call.past = CrossIteration(in, norm.layer_.options.convolution, rules(), queue);
    Places places(work);
    Bound bound = bind(state, call.past.source(), places, queue);
    const std::int64_t groups = plan.norm.groups();
    const NormImpl::Place place_of_call =
        place(places, 2 * groups + call.past.scratch(), Direction::forward, groups, records);
    take(bound, queue);
    norm.open(call, in, output, plan, {bound.call, frame.frame, frame.mask},
              rules().compensates() ? rules().window - 1 : 0, &place_of_call, queue);
    return bound;
  }
  NormImpl::Work open(BackwardArgs& args, const ForwardInputs& in, const BackwardInputs& gradients,
                      const BackwardOutputs& outputs, const KeptFrame& frame, std::byte* work, const Records& records,
                      Queue& queue) const {
    norm.check(in, in.input, queue);
    norm.check(in, gradients, outputs, queue);
    expect_frame(in, frame, queue);
    norm.describe(in, gradients, outputs, {{}, frame.frame, frame.mask}, args);
    Places places(work);
    const NormImpl::Place place_of_call =
        place(places, backward_scratch(args), Direction::backward, args.norm.groups(), records);
    return norm.work_for(args, exchanges, &place_of_call, queue);
  }
  void expect_frame(const ForwardInputs& in, const KeptFrame& frame, const Queue& queue) const {
    expect(frame.frame != nullptr, Code::invalid_argument, "the frame is missing, must be given");
    expect_memory(frame.frame, queue, "the frame");
    expect((frame.mask != nullptr) == (norm.has_mask(in) && in.input.elements() > 0) || in.input.elements() == 0,
           Code::invalid_argument, [&] {
             return std::string("the mask is ") +
                    (frame.mask != nullptr ? "given, must not be without" : "missing, must be given with") +
                    " an activation and a residual";
           });
    expect_memory(frame.mask, queue, "the mask");
  }

  /// A first half that tells in its record why it cannot be made.
  template <class Half>
  void or_decline(Direction direction, std::byte* record, Queue& queue, const Half& half) const {
    try {
      with_named_errors(half);
    } catch (const Error& error) {
      decline(direction, error.message(), record, queue);
    } catch (const std::exception& error) {
      decline(direction, error.what(), record, queue);
    }
  }
  void decline(Direction direction, std::string_view why, std::byte* record, Queue& queue) const {
    const RecordHead head(Header(norm.name_, direction, 0), why);
    copy_to_device(record, &head, sizeof head, queue);
  }
  /// What a second half reads: records that agree and are of such a call, as far as the host sees them.
  Gathered expect_records(const std::byte* records, Direction direction, std::int64_t groups,
                          const Queue& queue) const {
    expect(records != nullptr, Code::invalid_argument, "the records are missing, must be those of all ranks");
    const Gathered all = gathered(records, direction, groups);
    if (queue.device().kind != DeviceKind::cpu) return all;
    const auto& first = *reinterpret_cast<const RecordHead*>(records);  // which is there whatever follows
    expect((first.flags & flag_declined) != 0 ||
               (first.count == index(doubles(direction, groups)) &&
                first.header.get(Field::direction) == static_cast<std::uint64_t>(direction)),
           Code::invalid_argument,
           [&] { return "the records are of " + describe(first.header) + ", must be of this call's first half"; });
    allnorm::expect_agreement(all, *norm.group_);
    return all;
  }

  /// A layer with a state of its own, which has what the caller keeps: for saving and loading.
  struct Loaded {
    NormImpl norm;
    Bound bound;
  };
  Loaded with_state(const KeptState& state, Queue& queue) const {
    Places none(nullptr);  // what a call has of its own is the layer's
    Loaded made{NormImpl(norm.layer_, norm.channels_, norm.group_, queue, norm.name_),
                bind(state, nullptr, none, queue, true)};
    LayerMemory& memory = made.norm.memory_;
    const Ring& ring = made.bound.call.ring;
    memory.make_window({norm.channels_, ring.fan_in, ring.mean_rows}, ring.wide, queue);
    take({memory.view(), made.bound.kept}, queue);
    copy_window(made.bound.call, memory.view(), queue);
    return made;
  }

  NormImpl norm;
  const bool exchanges;
};

Halves::Halves(const Layer& layer, std::int64_t channels, int rank, int ranks, Queue& queue, std::string name)
    : impl_(std::make_unique<Impl>(layer, channels, rank, ranks, queue, std::move(name))) {}
Halves::Halves(Halves&&) noexcept = default;
Halves& Halves::operator=(Halves&&) noexcept = default;
Halves::~Halves() = default;

const Layer& Halves::layer() const noexcept { return impl_->norm.layer_; }
int Halves::rank() const noexcept { return impl_->rank(); }
int Halves::ranks() const noexcept { return impl_->norm.group_->size(); }
bool Halves::exchanges() const noexcept { return impl_->exchanges; }

// ---- sizes

const std::size_t Halves::head_bytes = sizeof(RecordHead);

std::size_t Halves::record_bytes(Direction direction, std::int64_t groups) const {
  return sizeof(RecordHead) + index(impl_->doubles(direction, groups)) * sizeof(double);
}
std::int64_t Halves::frame_size(std::int64_t groups) const noexcept { return impl_->norm.frame_size(groups); }
std::int64_t Halves::groups(const ConstTensorView& input) const {
  return plan_for(layer(), input.shape, input.order).norm.groups();
}

std::size_t Halves::work_bytes(const ForwardInputs& in) const {
  const Plan plan = plan_for(layer(), in.input.shape, in.input.order);
  const std::int64_t groups = plan.norm.groups();
  const WeightShape weights = impl_->weights_of(in.conv_weight);
  LayerCall call;
  call.fine = plan.fine;
  call.affine = plan.affine;
  Places forward(nullptr), backward(nullptr);
  impl_->lay_out_state(forward);
  impl_->place(forward, 2 * groups + CrossIteration::scratch(weights), Direction::forward, groups, {});
  impl_->place(backward, backward_scratch(call), Direction::backward, groups, {});
  return std::max(forward.used(), backward.used());
}

std::size_t Halves::history_bytes(const ConstTensorView& conv_weight, bool wide) const {
  if (!impl_->has_history()) return 0;
  return index(impl_->head_of(impl_->weights_of(conv_weight), wide).bytes);
}

// ---- state

void Halves::start_history(std::span<std::byte> history, Queue& queue, const ConstTensorView& conv_weight,
                           bool wide) const {
  const HistoryHead head = impl_->head_of(impl_->weights_of(conv_weight), wide);
  const std::size_t bytes = impl_->has_history() ? index(head.bytes) : 0;
  expect(history.size() == bytes, Code::invalid_argument, [&] {
    return "the history has " + std::to_string(history.size()) + " bytes, must have " + std::to_string(bytes);
  });
  if (bytes == 0) return;
  const std::vector<std::byte> zeros(bytes);
  copy_to_device(history.data(), zeros.data(), bytes, queue);
  copy_to_device(history.data(), &head, sizeof head, queue);
}

bool Halves::has_entries(std::span<const std::byte> history) const {
  if (!impl_->has_history()) return false;
  Queue host = Queue::cpu();
  const HistoryHead head = impl_->read_head(history, impl_->head_of({}, false), host);
  Places block(const_cast<std::byte*>(history.data()));
  const Counters& now = *History(head, block).counters;
  return now.entries > 0 || now.done > 0;
}

void Halves::begin_batch(const KeptState& state, Queue& queue) const {
  if (impl_->rules().minibatches == 1) return;
  Places size(nullptr);
  impl_->lay_out_state(size);
  Buffer<std::byte> work(size.used(), queue, Fill::none);
  Places places(work.data());
  const Impl::Bound bound = impl_->bind(state, nullptr, places, queue, true);
  impl_->take(bound, queue);
  queue.ops().begin_batch(impl_->rules(), bound.call, queue);
  impl_->give(bound, queue);
}

// ---- calls

void Halves::forward_local(const ForwardInputs& inputs, const KeptState& state, std::byte* work, std::byte* record,
                           Queue& queue) const {
  if (!impl_->exchanges) return;
  impl_->or_decline(Direction::forward, record, queue, [&] {
    TensorView output;  // nothing is written yet: any tensor like the input will do
    output.data = const_cast<void*>(inputs.input.data);
    output.dtype = inputs.input.dtype;
    output.device = inputs.input.device;
    output.shape = inputs.input.shape;
    output.order = inputs.input.order;
    NormImpl::ForwardCall call;
    impl_->open(call, inputs, output, state, {}, work, {record, nullptr}, queue);
    impl_->norm.first_half(call, queue);
  });
}

void Halves::forward_finish(const ForwardInputs& inputs, TensorView output, const KeptState& state,
                            const KeptFrame& frame, std::byte* work, const std::byte* records, Queue& queue) const {
  with_named_errors([&] {
    const NormImpl& norm = impl_->norm;
    impl_->expect_frame(inputs, frame, queue);
    if (const FrameSource source = impl_->source(); source != FrameSource::call) {
      const Plan plan = norm.check(inputs, output, queue);
      Places places(work);
      const Impl::Bound bound = impl_->bind(state, nullptr, places, queue);
      impl_->take(bound, queue);
      ForwardArgs args;
      norm.describe(inputs, output, plan, {bound.call, frame.frame, frame.mask}, args);
      args.source = source;
      queue.ops().forward_finish(args, {}, queue);
      return;
    }
    NormImpl::ForwardCall call;
    const Impl::Bound bound = impl_->open(call, inputs, output, state, frame, work, {nullptr, records}, queue);
    Gathered gathered;
    if (impl_->exchanges) {
      gathered = impl_->expect_records(records, Direction::forward, call.args.norm.groups(), queue);
    } else {
      norm.first_half(call, queue);
      gathered = norm.gather(call.work, false, queue);
    }
    norm.second_half(call, gathered, queue);
    impl_->give(bound, queue);
    if (queue.device().kind != DeviceKind::cpu) return;
    norm.expect_counted(*bound.call.last);
    if (impl_->rules().nonfinite == NonFinite::fail) norm.expect_finite(*bound.call.met);
  });
}

void Halves::replay(const ForwardInputs& inputs, TensorView output, const KeptFrame& frame, Queue& queue) const {
  with_named_errors([&] {
    const Plan plan = impl_->norm.check(inputs, output, queue);
    impl_->expect_frame(inputs, frame, queue);
    ForwardArgs args;
    impl_->norm.describe(inputs, output, plan, {{}, frame.frame, frame.mask}, args);
    args.source = FrameSource::given;
    queue.ops().forward_finish(args, {}, queue);
  });
}

void Halves::backward_local(const ForwardInputs& inputs, const BackwardInputs& gradients,
                            const BackwardOutputs& outputs, const KeptFrame& frame, std::byte* work, std::byte* record,
                            Queue& queue) const {
  if (!impl_->exchanges) return;
  impl_->or_decline(Direction::backward, record, queue, [&] {
    BackwardArgs args;
    impl_->open(args, inputs, gradients, outputs, frame, work, {record, nullptr}, queue);
    queue.ops().backward_local(args, queue);
  });
}

void Halves::backward_finish(const ForwardInputs& inputs, const BackwardInputs& gradients,
                             const BackwardOutputs& outputs, const KeptFrame& frame, std::byte* work,
                             const std::byte* records, Queue& queue) const {
  with_named_errors([&] {
    BackwardArgs args;
    const NormImpl::Work made = impl_->open(args, inputs, gradients, outputs, frame, work, {nullptr, records}, queue);
    Gathered gathered;
    if (impl_->exchanges) {
      gathered = impl_->expect_records(records, Direction::backward, args.norm.groups(), queue);
    } else {
      queue.ops().backward_local(args, queue);
      gathered = impl_->norm.gather(made, false, queue);
    }
    queue.ops().backward_finish(args, gathered, queue);
  });
}

void Halves::decline(Direction direction, std::string_view why, std::byte* record, Queue& queue) const {
  impl_->decline(direction, why, record, queue);
}

void Halves::expect_agreement(const std::byte* heads, std::size_t stride) const {
  allnorm::expect_agreement({heads, stride, ranks()}, *impl_->norm.group_);
}

// ---- saving

State Halves::save(const KeptState& state, Queue& queue) const {
  return impl_->with_state(state, queue).norm.save(queue);
}

void Halves::load(const State& from, const KeptState& state, Queue& queue, const LoadOptions& options) const {
  Impl::Loaded loaded = impl_->with_state(state, queue);
  loaded.norm.load(from, queue, options);
  const LayerState& made = loaded.norm.memory_.view();
  const Ring &theirs = made.ring, &ours = loaded.bound.call.ring;
  expect(theirs.fan_in == ours.fan_in && theirs.mean_rows == ours.mean_rows && theirs.wide == ours.wide,
         Code::invalid_input, [&] {
           return "the state's derivatives are of " + std::to_string(theirs.fan_in) + " weights in " +
                  (theirs.wide ? "f64" : "f32") + ", must be of " + std::to_string(ours.fan_in) + " in " +
                  (ours.wide ? "f64" : "f32") + " as the history's";
         });
  impl_->give({made, loaded.bound.kept}, queue);
  copy_window(made, loaded.bound.call, queue);
}

}  // namespace allnorm
