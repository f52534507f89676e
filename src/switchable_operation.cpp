// The operation of rows that mix the statistics of instance, layer and batch norm (Switchable Normalization). Those of
// every channel of a sample are the only pass over x; layer and batch norm's are made of them.
#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/switchable.hpp"
#include "src/norm_impl.hpp"
#include "src/operations.hpp"
#include "src/parameters.hpp"
#include "src/slots.hpp"

namespace allnorm {

namespace {

using formulas::Mixture;
using formulas::Moments;
using formulas::MomentTerms;
using formulas::Pool;
using formulas::SwitchedFrame;
using Values = std::vector<double>;

constexpr Axes each_channel{Axis::channel}, each_instance{Axis::sample, Axis::channel};

/// What a call leaves: its statistics, and the tensors that it borrows. Sets are the channels of samples, (N, C).
struct SavedSwitchable final : SavedCall {
  bool training() const noexcept override { return exchanged; }
  std::span<const double> statistic(std::string_view name) const noexcept override {
    if (name == "mean") return batch_mean;
    if (name == "var") return batch_var;
    return {};
  }

  ConstTensorView input{}, weight{}, bias{};
  Partition partition{};
  formulas::SwitchWeights weights{};
  std::vector<SwitchedFrame> frames{};  // (N * C)
  Values batch_mean{}, batch_var{};     // (C) of batch norm
  double count = 0, batch_count = 0;    // values of a set and of a channel, over the ranks
  std::uint64_t call = 0;
  bool live = false;       // the batch's statistics are this call's, not the running ones
  bool exchanged = false;  // so does backward
};

class SwitchableOperation final : public Operation {
 public:
  SwitchableOperation(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, Queue& queue,
                      std::string name)
      : layer_(layer), row_(row_of_norm(layer)), norm_(of_norm(layer, row_), channels, group, queue, std::move(name)) {
    expect_on_cpu(layer.row->name, queue);
  }

  const Layer& layer() const noexcept override { return layer_; }
  const std::string& name() const noexcept override { return norm_.name_; }
  Communicator& group() const noexcept override { return *norm_.group_; }
  void set_training(bool training) noexcept override {
    layer_.options.training = norm_.layer_.options.training = training;
  }

  State state(Queue& queue) const override { return named_state(layer_, norm_.memory_.running(queue)); }
  void set_state(const State& given, Queue& queue) override {
    RunningStatistics running = norm_.memory_.running(queue);
    take_named_state(layer_, given, running);
    norm_.memory_.set_running(running, queue);
  }
  State save(Queue& queue) const override { return norm_.save(queue); }
  void load(const State& state, Queue& queue, const LoadOptions& options) override {
    norm_.load(state, queue, options);
  }

 private:
  // The norm keeps the state and makes the exchanges; its sets are those whose moments travel.
  static Row row_of_norm(const Layer& layer) {
    Row row = *layer.row;
    row.operation = OperationKind::norm;
    row.statistics = layer.options.shard == Shard::space ? each_instance : each_channel;
    row.statistics_with = nullptr;
    return row;
  }
  static Layer of_norm(Layer layer, const Row& row) {
    layer.row = &row;
    return layer;
  }

  bool has_parts_of_samples() const noexcept { return layer_.options.shard == Shard::space && group().size() > 1; }
  // Parts of samples have statistics of their own nowhere: inference exchanges those of the samples, too.
  bool exchanges(bool infers) const noexcept override {
    return has_parts_of_samples() || (layer_.options.training && !infers);
  }

  void check(const InputSlots& inputs, const ConstTensorView& output, const Queue& queue) const {
    const ConstTensorView input = inputs["input"];
    expect(input.given(), Code::invalid_argument, "input is missing");
    layer_.shape_of({}, input.shape);  // throws where there are too few axes
    if (input.dtype == DType::i64) refuse_integers("input");
    expect_like(input, {input.data, input.dtype, queue.device(), input.shape, input.order}, queue, "input");
    expect(input.channels() == norm_.channels_, Code::invalid_input, [&] {
      return "input has " + std::to_string(input.channels()) + " channels, must have " +
             std::to_string(norm_.channels_);
    });
    expect_like(output, input, queue, "output");
    for (const TensorSpec& tensor : layer_.row->tensors)
      if (const ConstTensorView view = inputs[tensor.name]; view.given())
        expect_tensor(layer_, tensor, view, input, queue, std::string(tensor.name).c_str());
  }

  // This rank's record of an exchange, its head written, for `count` doubles.
  NormImpl::Work record_of(Direction direction, DType dtype, std::int64_t groups, std::int64_t count,
                           const SavedSwitchable& saved, Queue& queue) const {
    const LayerState& state = norm_.memory_.view();
    Header header = norm_.header(dtype, groups, direction);
    if (direction == Direction::forward) {
      header.set(Field::moments, static_cast<std::uint64_t>(groups));
      header.set(Field::co_moments, std::uint64_t{1});
      steps::Hashes hashes = steps::hashes_of(state);
      for (std::int64_t c = 0; c < state.channels; ++c) hashes.add(steps::hashes_of(state, c));
      steps::write_header(norm_.memory_.rules(), state, hashes, header);
    }
    header.set(Field::call, saved.call);
    header.set(Field::inference, std::uint64_t{!saved.live});
    NormImpl::Work work = norm_.make_work(0, count, header, queue);
    *reinterpret_cast<RecordHead*>(work.record.data) = RecordHead(header, 0, static_cast<std::uint64_t>(count));
    return work;
  }
  Gathered gather(const NormImpl::Work& work, Queue& queue) const {
    return norm_.gather(work, group().size() > 1, queue);
  }

  // Moments of every channel of a sample, over the ranks where these hold parts of it: frames' `instance`, and count.
  void take_instances(SavedSwitchable& saved, const Gathered& gathered, const double* mean, const double* m2) const {
    const steps::Layout layout{saved.partition.groups()};
    const bool merged = has_parts_of_samples();
    if (merged) saved.count = steps::summed(gathered, 0);
    for (std::size_t i = 0; i < saved.frames.size(); ++i) {
      const auto g = static_cast<std::int64_t>(i);
      const Moments all = merged ? steps::moments_of(gathered, layout, g) : Moments{};
      saved.frames[i].instance =
          formulas::instance_moments(layer_.options.unbiased_instance_var, saved.count, merged ? all.mean : mean[i],
                                     merged ? all.var * saved.count : m2[i]);
    }
  }

  // A layer norm's of every sample, and a batch norm's of every channel (C) of this rank.
  std::vector<Pool> pool(SavedSwitchable& saved) const {
    const std::size_t C = static_cast<std::size_t>(norm_.channels_);
    std::vector<Pool> channels(C);
    for (std::size_t first = 0; first < saved.frames.size(); first += C) {
      Pool sample;
      for (std::size_t c = 0; c < C; ++c) {
        sample.add(saved.count, saved.frames[first + c].instance);
        channels[c].add(saved.count, saved.frames[first + c].instance);
      }
      for (std::size_t c = 0; c < C; ++c) saved.frames[first + c].layer = sample.moments();
    }
    return channels;
  }

  // This call's statistics; with `live` the state moves, but for its turn, which is returned.
  Turn statistics(SavedSwitchable& saved, const InputSlots& inputs, const ConstTensorView& output, Queue& queue) const {
    const std::int64_t C = norm_.channels_;
    const LayerState& state = norm_.memory_.view();
    const Rules& rules = norm_.memory_.rules();
    const bool of_samples = has_parts_of_samples();
    NormImpl::Work work;
    Values own;  // mean, m2 (N * C)
    double *mean = nullptr, *m2 = nullptr;
    std::vector<Pool> pools;
    tell_others(saved.exchanged, group(), [&] {  // everything that can be wrong on this rank alone
      check(inputs, output, queue);
      const ConstTensorView& x = saved.input;
      saved.partition = partition(each_instance, x.shape, x.order);
      saved.count = static_cast<double>(saved.partition.group_size());
      saved.call = static_cast<std::uint64_t>(state.now().calls);
      saved.weights = {formulas::softmax(parameter(inputs["mean_logits"], 1)),
                       formulas::softmax(parameter(inputs["var_logits"], 1))};
      const std::int64_t sets = saved.partition.groups();
      saved.frames.resize(index(sets));
      if (of_samples) {
        work = record_of(Direction::forward, x.dtype, sets, steps::Layout{sets}.size(0), saved, queue);
        double* const payload = steps::payload_of(work.record.data);
        payload[0] = saved.count;
        mean = payload + steps::Layout{sets}.mean(0);
        m2 = payload + steps::Layout{sets}.m2(0);
      } else {
        own.resize(index(2 * sets));
        mean = own.data();
        m2 = mean + sets;
      }
      queue.ops().moments({x.data, x.dtype, saved.partition, mean, m2}, queue);
      if (of_samples) return;
      take_instances(saved, {}, mean, m2);
      pools = pool(saved);
      if (!saved.live) return;
      work = record_of(Direction::forward, x.dtype, C, steps::Layout{C}.size(0), saved, queue);
      double* const payload = steps::payload_of(work.record.data);
      payload[0] = saved.count * static_cast<double>(x.samples());
      for (std::int64_t c = 0; c < C; ++c) {
        payload[steps::Layout{C}.mean(c)] = pools[index(c)].mean;
        payload[steps::Layout{C}.m2(c)] = pools[index(c)].m2;
      }
    });
    if (of_samples) {
      take_instances(saved, gather(work, queue), nullptr, nullptr);
      pools = pool(saved);
      saved.batch_count = saved.count * static_cast<double>(saved.input.samples());
    } else if (saved.live) {
      const Gathered gathered = gather(work, queue);
      saved.batch_count = steps::summed(gathered, 0);
      for (std::int64_t c = 0; c < C; ++c) {
        const Moments all = steps::moments_of(gathered, steps::Layout{C}, c);
        pools[index(c)] = {saved.batch_count, all.mean, all.var * saved.batch_count};
      }
    }
    const Turn turn = steps::turn_of(rules, state.now(), saved.batch_count, false);
    saved.batch_mean.resize(index(C));
    saved.batch_var.resize(index(C));
    for (std::int64_t c = 0; c < C; ++c) {
      Moments batch = pools[index(c)].moments();
      if (saved.live)
        steps::write_next(rules, state, turn, c, {}, {batch.mean, batch.var, batch.var});
      else
        batch = {state.now(LayerState::running_mean)[c], state.now(LayerState::running_spread)[c]};
      saved.batch_mean[index(c)] = batch.mean;
      saved.batch_var[index(c)] = batch.var;
    }
    for (std::size_t i = 0; i < saved.frames.size(); ++i) {
      SwitchedFrame& frame = saved.frames[i];
      const std::size_t c = i % index(C);
      frame = formulas::switched(saved.weights, frame.instance, frame.layer, {saved.batch_mean[c], saved.batch_var[c]},
                                 layer_.options.eps);
    }
    return turn;
  }

  /// Arrays (N * C) that a map takes, of f(frame, channel).
  template <class Value>
  Values each(const SavedSwitchable& saved, const Value& value) const {
    Values made(saved.frames.size());
    for (std::size_t i = 0; i < made.size(); ++i)
      made[i] = value(saved.frames[i], static_cast<std::int64_t>(i) % norm_.channels_);
    return made;
  }
  Values centers(const SavedSwitchable& saved) const {
    return each(saved, [](const SwitchedFrame& frame, std::int64_t) { return frame.mean; });
  }

  void map(SavedSwitchable& saved, const InputSlots& inputs, const TensorView& output, Queue& queue) const {
    saved.weight = inputs["weight"];
    saved.bias = inputs["bias"];
    const Parameter gamma = parameter(saved.weight, 1), beta = parameter(saved.bias, 0);
    const auto of = [&](const SwitchedFrame& frame, std::int64_t c) {
      return formulas::apply(frame.rstd, {}, gamma[c], beta[c]);
    };
    const Values center = centers(saved), scale = each(saved, [&](const auto&f, auto c) { return of(f, c).scale; }),
                 shift = each(saved, [&](const auto&f, auto c) { return of(f, c).shift; });
    queue.ops().apply({saved.input.data,
                       nullptr,
                       output.data,
                       saved.input.dtype,
                       saved.partition,
                       center.data(),
                       scale.data(),
                       shift.data(),
                       {},
                       {}},
                      queue);
  }

  std::unique_ptr<SavedSwitchable> call(const InputSlots& inputs, const TensorView& output, bool infers,
                                        Queue& queue) const {
    if (exchanges(infers)) group().check();
    auto saved = std::make_unique<SavedSwitchable>();
    saved->input = inputs["input"];
    saved->live = layer_.options.training && !infers;
    saved->exchanged = exchanges(infers);
    const Turn turn = statistics(*saved, inputs, output, queue);
    map(*saved, inputs, output, queue);
    if (saved->live) steps::advance(norm_.memory_.rules(), norm_.memory_.view(), turn, true);
    return saved;
  }

  std::unique_ptr<SavedCall> run_forward(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override {
    return call(inputs, outputs["output"], false, queue);
  }
  void run_infer(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override {
    call(inputs, outputs["output"], true, queue);
  }

  std::unique_ptr<SavedCall> run_replay(const SavedCall& earlier, const InputSlots& inputs, const OutputSlots& outputs,
                                        Queue& queue) override {
    auto saved = std::make_unique<SavedSwitchable>(own(earlier));
    const ConstTensorView input = inputs["input"];
    expect(input.shape == saved->input.shape, Code::invalid_argument, [&] {
      return "the replayed input has shape " + to_string(input.shape) + ", must have " + to_string(saved->input.shape) +
             " as in the earlier call";
    });
    check(inputs, outputs["output"], queue);
    saved->input = input;
    saved->partition = partition(each_instance, input.shape, input.order);
    map(*saved, inputs, outputs["output"], queue);
    return saved;
  }

  void run_backward(const SavedCall& call, const InputSlots& inputs, const OutputSlots& gradients,
                    Queue& queue) override {
    const SavedSwitchable& saved =
        tell_others(call.training(), group(), [&]() -> const SavedSwitchable& { return own(call); });
    if (saved.exchanged) group().check();
    const ConstTensorView &x = saved.input, dy = inputs["grad_output"];
    const std::int64_t C = norm_.channels_, sets = saved.partition.groups();
    const bool of_samples = has_parts_of_samples();
    const Parameter gamma = parameter(saved.weight, 1);
    const Values center = centers(saved);
    Values sums(index(2 * sets));  // of dy, of dy * (x - mean): (N * C) each, of this rank
    NormImpl::Work work;
    std::vector<MomentTerms> terms(saved.frames.size()), layers(saved.frames.size()), batches(index(C));
    const auto terms_of = [&](std::size_t i, double sum_g, double sum_gx) {
      return formulas::switched_terms(saved.frames[i], gamma[static_cast<std::int64_t>(i) % C], sum_g, sum_gx);
    };
    tell_others(saved.exchanged, group(), [&] {
      expect_like(dy, x, queue, "grad_output");
      check_gradients(x, gradients, queue);
      queue.ops().moments_grad(
          {x.data, dy.data, x.dtype, saved.partition, center.data(), {}, sums.data(), sums.data() + sets, {}}, queue);
      if (saved.count > 0)
        for (std::size_t i = 0; i < terms.size(); ++i) terms[i] = terms_of(i, sums[i], sums[index(sets) + i]);
      if (of_samples) {
        work = record_of(Direction::backward, x.dtype, sets, 2 * sets, saved, queue);
        std::copy(sums.begin(), sums.end(), steps::payload_of(work.record.data));
        return;
      }
      gather_terms(saved, terms, layers, batches);
      if (!saved.live) return;
      work = record_of(Direction::backward, x.dtype, C, 2 * C, saved, queue);
      double* const payload = steps::payload_of(work.record.data);
      for (std::int64_t c = 0; c < C; ++c) {
        payload[c] = batches[index(c)].mean;
        payload[C + c] = batches[index(c)].var;
      }
    });
    const std::vector<MomentTerms> own_terms = terms;  // of this rank's values
    if (of_samples) {
      const Gathered gathered = gather(work, queue);
      if (saved.count > 0)
        for (std::size_t i = 0; i < terms.size(); ++i) {
          const auto g = static_cast<std::int64_t>(i);
          terms[i] = terms_of(i, steps::summed(gathered, g), steps::summed(gathered, sets + g));
        }
      gather_terms(saved, terms, layers, batches);
    } else if (saved.live) {
      const Gathered gathered = gather(work, queue);
      for (std::int64_t c = 0; c < C; ++c)
        batches[index(c)] = {steps::summed(gathered, c), steps::summed(gathered, C + c)};
    }
    write_parameters(saved, sums, own_terms, gradients);
    if (gradients["grad_input"].given())
      write_input(saved, dy, terms, layers, batches, center, gradients["grad_input"], queue);
  }

  void check_gradients(const ConstTensorView& x, const OutputSlots& gradients, const Queue& queue) const {
    if (gradients["grad_input"].given()) expect_like(gradients["grad_input"], x, queue, "grad_input");
    for (const OutputSpec& output : layer_.row->outputs)
      if (const TensorSpec* tensor = layer_.row->gradient(output.name);
          tensor != nullptr && gradients[output.name].given())
        expect_tensor(layer_, *tensor, gradients[output.name], x, queue, std::string(output.name).c_str());
  }

  // The terms of a sample's layer norm, for each of its channels, and of a channel's batch norm (C), weighted.
  void gather_terms(const SavedSwitchable& saved, const std::vector<MomentTerms>& terms,
                    std::vector<MomentTerms>& layers, std::vector<MomentTerms>& batches) const {
    const auto C = index(norm_.channels_);
    const auto& [of_mean, of_var] = saved.weights;
    for (std::size_t first = 0; first < terms.size(); first += C) {
      MomentTerms sample;
      for (std::size_t c = 0; c < C; ++c) {
        sample.add(terms[first + c].times(of_mean, of_var, &Mixture::layer));
        if (saved.live) batches[c].add(terms[first + c].times(of_mean, of_var, &Mixture::batch));
      }
      std::fill_n(layers.begin() + static_cast<std::ptrdiff_t>(first), C, sample);
    }
  }

  void write_parameters(const SavedSwitchable& saved, const Values& sums, const std::vector<MomentTerms>& terms,
                        const OutputSlots& gradients) const {
    const auto C = index(norm_.channels_);
    Values dgamma(C), dbeta(C);
    formulas::LogitTerms logits;
    for (std::size_t i = 0; saved.count > 0 && i < terms.size(); ++i) {
      const SwitchedFrame& frame = saved.frames[i];
      dgamma[i % C] += formulas::gamma_grad(frame.rstd, {}, sums[i], sums[terms.size() + i]);
      dbeta[i % C] += sums[i];
      logits.add(saved.weights, frame, terms[i]);
    }
    const auto write = [&](std::string_view name, const auto& values) {
      const ParameterGrad to = parameter_grad(gradients[name]);
      for (std::size_t i = 0; i < std::size(values); ++i) to.set(static_cast<std::int64_t>(i), values[i]);
    };
    write("grad_weight", dgamma);
    write("grad_bias", dbeta);
    write("grad_mean_logits", logits.mean);
    write("grad_var_logits", logits.var);
  }

  void write_input(const SavedSwitchable& saved, const ConstTensorView& dy, const std::vector<MomentTerms>& terms,
                   const std::vector<MomentTerms>& layers, const std::vector<MomentTerms>& batches,
                   const Values& center, const TensorView& dx, Queue& queue) const {
    const auto C = index(norm_.channels_);
    const Parameter gamma = parameter(saved.weight, 1);
    const double of_layer = 1 / static_cast<double>(C), of_batch = saved.live ? saved.count / saved.batch_count : 0;
    Values gain(terms.size()), slope(terms.size()), offset(terms.size()), power(terms.size());
    for (std::size_t i = 0; i < terms.size(); ++i) {
      const auto k = formulas::switched_grad(saved.weights, saved.frames[i], gamma[static_cast<std::int64_t>(i % C)],
                                             saved.count, layer_.options.unbiased_instance_var, terms[i],
                                             {layers[i], of_layer}, {batches[i % C], of_batch});
      gain[i] = k.gain;
      slope[i] = k.slope;
      offset[i] = k.offset;
      power[i] = k.power;
    }
    queue.ops().apply_grad({saved.input.data,
                            dy.data,
                            dx.data,
                            nullptr,
                            saved.input.dtype,
                            saved.partition,
                            center.data(),
                            {},
                            gain.data(),
                            slope.data(),
                            offset.data(),
                            power.data(),
                            {}},
                           queue);
  }

  static const SavedSwitchable& own(const SavedCall& call) {
    const auto* found = dynamic_cast<const SavedSwitchable*>(&call);
    expect(found != nullptr, Code::invalid_argument, "the saved call is another operation's, must be of one like this");
    return *found;
  }

  Layer layer_;
  Row row_;
  NormImpl norm_;
};

}  // namespace

std::unique_ptr<Operation> make_switchable_operation(const Layer& layer, std::int64_t channels,
                                                     std::shared_ptr<Communicator> group, Queue& queue,
                                                     std::string name) {
  return std::make_unique<SwitchableOperation>(layer, channels, std::move(group), queue, std::move(name));
}

}  // namespace allnorm
