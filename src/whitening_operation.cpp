// The operation of rows that whiten: the channels of a group lose their means, and their correlations by the inverse
// root of their covariance. Sums and maps over x are kernels; the matrices between them are made on the host.
#include <algorithm>
#include <cmath>
#include <utility>

#include "allnorm/sizes.hpp"
#include "src/gpu.hpp"
#include "src/nonfinite_text.hpp"
#include "src/norm_impl.hpp"
#include "src/operations.hpp"
#include "src/slots.hpp"
#include "src/whitening.hpp"
#include "src/whitening_state.hpp"

namespace allnorm {

namespace {

using Values = std::vector<double>;

/// What a call leaves: what it whitened with, and the tensor that it borrows.
struct SavedWhitening final : SavedCall {
  bool training() const noexcept override { return live; }
  std::span<const double> statistic(std::string_view) const noexcept override { return {}; }

  ConstTensorView input{};
  Values mean{}, matrix{}, power{};  // (C), (C, g), (G): y = matrix ((x - mean) power), group by group
  std::vector<Whitened> groups{};    // (G) of this call's own covariance; none where there is no such
  double count = 0;                  // values of a channel, over the ranks
  std::uint64_t call = 0;
  bool live = false;  // the statistics are this call's, not the running ones
  bool hit = false;   // and values of the input are not finite
};

const SavedWhitening& own(const SavedCall& call) {
  const auto* found = dynamic_cast<const SavedWhitening*>(&call);
  expect(found != nullptr, Code::invalid_argument, "the saved call is another operation's, must be of one like this");
  return *found;
}

class WhiteningOperation final : public Operation {
 public:
  WhiteningOperation(const Layer& layer, std::int64_t channels, std::shared_ptr<Communicator> group, std::string name)
      : layer_((layer.check(), layer)),
        channels_(fitting(layer, channels)),
        width_(layer.options.group_size),
        group_(group ? std::move(group) : self()),
        name_(name.empty() ? std::string(layer.row->name) : std::move(name)),
        running_(channels_, width_) {}

  const Layer& layer() const noexcept override { return layer_; }
  const std::string& name() const noexcept override { return name_; }
  Communicator& group() const noexcept override { return *group_; }
  void set_training(bool training) noexcept override { layer_.options.training = training; }
  NonFiniteCalls nonfinite() const override { return met_; }

  State state(Queue&) const override { return running_.named(); }
  void set_state(const State& given, Queue&) override { running_.take_named(*layer_.row, given); }
  State save(Queue&) const override { return running_.saved(layer_, *group_); }
  void load(const State& state, Queue&, const LoadOptions&) override { running_.load(*layer_.row, state); }

 private:
  static std::int64_t fitting(const Layer& layer, std::int64_t channels) {
    expect(channels >= 0, Code::invalid_argument,
           [&] { return "channels is " + std::to_string(channels) + ", must be at least 0"; });
    layer.shape_of({}, {1, channels});  // throws where its groups do not fit
    expect_fits("channels", channels, {4, std::max<std::int64_t>(1, channels), sizeof(double)});
    return channels;
  }
  std::int64_t groups() const noexcept { return channels_ / width_; }
  std::int64_t pairs() const noexcept { return channels_ * width_; }
  ChannelGroups channel_groups(const ConstTensorView& x) const {
    return {x.samples(), channels_, x.space(), width_, x.order};
  }

  void check(const ConstTensorView& input, const ConstTensorView& output, Queue& queue) const {
    expect(input.given(), Code::invalid_argument, "input is missing");
    layer_.shape_of({}, input.shape);  // throws where there are too few axes
    if (input.dtype == DType::i64) refuse_integers("input");
    expect_like(input, {input.data, input.dtype, queue.device(), input.shape, input.order}, queue, "input");
    expect(input.channels() == channels_, Code::invalid_input, [&] {
      return "input has " + std::to_string(input.channels()) + " channels, must have " + std::to_string(channels_);
    });
    expect_like(output, input, queue, "output");
    expect_not_captured(queue);
  }
  void expect_not_captured(Queue& queue) const {
    expect(queue.device().kind == DeviceKind::cpu || !is_captured(queue), Code::unsupported, [&] {
      return "a call of " + std::string(layer_.row->name) + " waits on the host, it cannot be captured in a graph";
    });
  }

  // A message of this rank's sums, of which the group's are made.
  Message message(Direction direction, const SavedWhitening& saved) const {
    Message made{Header(name_, direction, saved.call), {}, 0, {}};
    write_layer(layer_, made.header);
    made.header.set(Field::channels, static_cast<std::uint64_t>(channels_));
    made.header.set(Field::dtype, static_cast<std::uint64_t>(saved.input.dtype));
    return made;
  }
  Message all_of(Message message, Queue& queue) const {
    if (group_->size() > 1) return group_->exchange(std::move(message), queue);
    message.nonfinite = (message.flags & flag_nonfinite) != 0 ? rank_bit(0) : 0;
    return message;
  }

  // Number of values, means (C), sums of products (C, g): merged as such over the ranks.
  Message moments(const SavedWhitening& saved, Queue& queue) const {
    const ConstTensorView& x = saved.input;
    Message made = message(Direction::forward, saved);
    made.header.set(Field::moments, static_cast<std::uint64_t>(channels_));
    made.header.set(Field::co_moments, static_cast<std::uint64_t>(width_));
    made.header.set(Field::running_hash, running_.hash());
    Buffer<double> sums(index(2 * channels_ + pairs()), queue, Fill::none);
    double *const mean = sums.data(), *const products = mean + channels_, *const squares = products + pairs();
    queue.ops().moments({x.data, x.dtype, partition({Axis::channel}, x.shape, x.order), mean, squares}, queue);
    queue.ops().channel_products(
        {.x = x.data, .dtype = x.dtype, .groups = channel_groups(x), .center = mean, .products = products}, queue);
    made.payload = to_host(std::span<const double>(sums.data(), index(channels_ + pairs())), queue);
    made.payload.insert(made.payload.begin(), static_cast<double>(x.samples() * x.space()));
    if (channels_hit(made.payload).count > 0) made.flags |= flag_nonfinite;
    return made;
  }

  // Of such moments: the channels whose mean or variance is not finite.
  NonFinitePlaces channels_hit(const Values& moments) const {
    NonFinitePlaces hit;
    for (std::int64_t c = 0; c < channels_; ++c) {
      const double mean = moments[index(1 + c)], square = moments[index(1 + channels_ + c * width_ + c % width_)];
      if (std::isfinite(mean) && std::isfinite(square)) continue;
      if (hit.count++ == 0) hit.first = static_cast<std::uint64_t>(c);
    }
    return hit;
  }
  // What the layer's rule says of a call whose moments, of all ranks, are not finite.
  void judge(SavedWhitening& saved, const Message& all) {
    const NonFinitePlaces places = channels_hit(all.payload);
    saved.hit = places.count > 0;
    if (!saved.hit) return;
    ++met_.calls;
    met_.last = nonfinite_text(all.nonfinite, *group_, Header(name_, Direction::forward, saved.call), places);
    if (layer_.options.nonfinite == NonFinite::fail) fail_as_nonfinite(met_.last);
  }

  // What the group's moments are whitened by.
  void whiten(SavedWhitening& saved, const Values& merged) const {
    const double* const products = merged.data() + 1 + channels_;
    saved.count = merged[0];
    saved.mean.assign(merged.begin() + 1, merged.begin() + 1 + channels_);
    if (saved.count == 0) return take(saved, running_.whitening());  // there is nothing to whiten
    for (std::int64_t group = 0; group < groups(); ++group) {
      const NormOptions& o = layer_.options;
      const double* const own_products = products + group * width_ * width_;
      saved.groups.push_back(iterates() ? whitened_by_iterations(own_products, width_, saved.count, o.eps, o.iterations)
                                        : whitened_by_eigenvectors(own_products, width_, saved.count, o.eps));
      const Whitened& made = saved.groups.back();
      saved.matrix.insert(saved.matrix.end(), made.matrix.begin(), made.matrix.end());
      saved.power.push_back(made.power);
    }
  }
  void take(SavedWhitening& saved, const Values& whitening) const {
    saved.matrix = whitening;
    saved.power.assign(index(groups()), 1);
  }
  bool iterates() const noexcept { return layer_.row->attribute("iterations") != nullptr; }

  // ---- maps --------------------------------------------------------------------------------------------------------

  // The power in the range of the type that maps compute in, and what is left of it to the matrix.
  static formulas::Split split(DType dtype, double power) {
    const double most = dtype == DType::f64 ? 0x1p1000 : 0x1p126;
    const double taken = formulas::clip(power, 1 / most, most);
    return {taken, power / taken};
  }

  // y = matrix ((x - center) power) + of_dy dy + shift; of_dy and shift are empty where there is no dy.
  void map(const ConstTensorView& x, const void* dy, const TensorView& y, const Values& center, const Values& power,
           Values matrix, const Values& of_dy, const Values& shift, Queue& queue) const {
    Values all, powers;
    for (std::int64_t group = 0; group < groups(); ++group) {
      const formulas::Split taken = split(x.dtype, power[index(group)]);
      powers.push_back(taken.power);
      for (std::int64_t i = 0; i < width_ * width_; ++i) matrix[index(group * width_ * width_ + i)] *= taken.rest;
    }
    for (const Values* part : {&center, &std::as_const(powers), &std::as_const(matrix), &of_dy, &shift})
      all.insert(all.end(), part->begin(), part->end());
    const Buffer<double> memory = to_device(all, queue);
    const double* at = memory.data();
    const auto next = [&at](const Values& part) {
      return part.empty() ? nullptr : std::exchange(at, at + part.size());
    };
    ChannelMapArgs args{.x = x.data, .dy = dy, .y = y.data, .dtype = x.dtype, .groups = channel_groups(x)};
    args.center = next(center);
    args.power = next(powers);
    args.matrix = next(matrix);
    args.of_dy = next(of_dy);
    args.shift = next(shift);
    queue.ops().channel_map(args, queue);
  }
  void whitened(const SavedWhitening& saved, const TensorView& output, Queue& queue) const {
    map(saved.input, nullptr, output, saved.mean, saved.power, saved.matrix, {}, {}, queue);
  }

  // dx = W^T dy where the statistics do not depend on x.
  void fixed_grad(const SavedWhitening& saved, ConstTensorView dy, const TensorView& dx, Queue& queue) const {
    map(dy, nullptr, dx, Values(index(channels_)), saved.power, transposed(saved.matrix), {}, {}, queue);
  }
  Values transposed(const Values& matrix) const {
    Values made(matrix.size());
    for (std::int64_t c = 0; c < channels_; ++c)
      for (std::int64_t j = 0; j < width_; ++j)
        made[index(c * width_ + j)] = matrix[index((c - c % width_ + j) * width_ + c % width_)];
    return made;
  }

  // This rank's sums of dy_c (x_j - mean_j) (C, g) and of dy_c (C).
  Message grad_sums(const SavedWhitening& saved, const ConstTensorView& dy, Queue& queue) const {
    const ConstTensorView& x = saved.input;
    const Buffer<double> mean = to_device(saved.mean, queue);
    Buffer<double> sums(index(pairs() + channels_), queue, Fill::none);
    queue.ops().channel_products(
        {x.data, dy.data, x.dtype, channel_groups(x), mean.data(), sums.data(), sums.data() + pairs()}, queue);
    Message made = message(Direction::backward, saved);
    made.payload = to_host(sums, queue);
    return made;
  }

  // dx = W^T (dy - mean of dy) + 2/M dSigma (x - mean). One value alone is 0 whatever it was.
  void write_grad(const SavedWhitening& saved, const ConstTensorView& dy, const TensorView& dx, const Values& sums,
                  Queue& queue) const {
    Values of_x(index(pairs())), of_dy = transposed(saved.matrix), shift(index(channels_));
    if (saved.count == 1) std::fill(of_dy.begin(), of_dy.end(), 0);
    for (std::int64_t group = 0; saved.count > 1 && group < groups(); ++group) {
      const Whitened& by = saved.groups[index(group)];
      const std::int64_t first = group * width_ * width_;
      Values dmatrix(sums.begin() + first, sums.begin() + first + width_ * width_);
      for (double& v : dmatrix) v *= by.power;
      const Values dsigma = iterates() ? covariance_grad_by_iterations(by, dmatrix, layer_.options.iterations)
                                       : covariance_grad_by_eigenvectors(by, dmatrix);
      for (std::int64_t i = 0; i < width_ * width_; ++i) {
        of_x[index(first + i)] = dsigma[index(i)] * (2 / saved.count) * by.power;
        of_dy[index(first + i)] *= by.power;
        shift[index(group * width_ + i / width_)] -=
            of_dy[index(first + i)] * (sums[index(pairs() + group * width_ + i % width_)] / saved.count);
      }
    }
    map(saved.input, dy.data, dx, saved.mean, saved.power, std::move(of_x), of_dy, shift, queue);
  }

  // ---- calls -------------------------------------------------------------------------------------------------------

  std::unique_ptr<SavedWhitening> call(const InputSlots& inputs, const TensorView& output, bool live, Queue& queue) {
    if (live) group_->check();
    auto saved = std::make_unique<SavedWhitening>();
    saved->input = inputs["input"];
    saved->call = static_cast<std::uint64_t>(running_.calls());
    saved->live = live;
    Message own_moments;
    tell_others(live, *group_, [&] {  // everything that can be wrong on this rank alone
      check(saved->input, output, queue);
      if (live) own_moments = moments(*saved, queue);
    });
    if (live) {
      const Message all = all_of(std::move(own_moments), queue);
      judge(*saved, all);
      whiten(*saved, all.payload);
    } else {
      saved->mean = running_.mean();
      take(*saved, running_.whitening());
    }
    whitened(*saved, output, queue);
    return saved;
  }

  std::unique_ptr<SavedCall> run_forward(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override {
    auto saved = call(inputs, outputs["output"], layer_.options.training, queue);
    const bool skips = saved->hit && layer_.options.nonfinite == NonFinite::skip_update;
    if (saved->live && !skips) running_.move(layer_.options, saved->count, saved->mean, saved->matrix, saved->power);
    return saved;
  }
  void run_infer(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override {
    call(inputs, outputs["output"], false, queue);
  }
  std::unique_ptr<SavedCall> run_replay(const SavedCall& earlier, const InputSlots& inputs, const OutputSlots& outputs,
                                        Queue& queue) override {
    auto saved = std::make_unique<SavedWhitening>(own(earlier));
    const ConstTensorView input = inputs["input"];
    expect(input.shape == saved->input.shape, Code::invalid_argument, [&] {
      return "the replayed input has shape " + to_string(input.shape) + ", must have " + to_string(saved->input.shape) +
             " as in the earlier call";
    });
    check(input, outputs["output"], queue);
    saved->input = input;
    whitened(*saved, outputs["output"], queue);
    return saved;
  }

  void run_backward(const SavedCall& call, const InputSlots& inputs, const OutputSlots& gradients,
                    Queue& queue) override {
    const SavedWhitening& saved =
        tell_others(call.training(), *group_, [&]() -> const SavedWhitening& { return own(call); });
    if (saved.live) group_->check();
    const ConstTensorView dy = inputs["grad_output"];
    const TensorView dx = gradients["grad_input"];
    Message own_sums;
    tell_others(saved.live, *group_, [&] {
      expect_not_captured(queue);
      expect_like(dy, saved.input, queue, "grad_output");
      if (dx.given()) expect_like(dx, saved.input, queue, "grad_input");
      if (saved.live) own_sums = grad_sums(saved, dy, queue);
    });
    Values sums;
    if (saved.live) sums = all_of(std::move(own_sums), queue).payload;
    if (!dx.given()) return;
    if (saved.live)
      write_grad(saved, dy, dx, sums, queue);
    else
      fixed_grad(saved, dy, dx, queue);
  }

  Layer layer_;
  std::int64_t channels_, width_;  // C, g
  std::shared_ptr<Communicator> group_;
  std::string name_;
  WhiteningState running_;
  NonFiniteCalls met_;
};

}  // namespace

std::unique_ptr<Operation> make_whitening_operation(const Layer& layer, std::int64_t channels,
                                                    std::shared_ptr<Communicator> group, Queue&, std::string name) {
  return std::make_unique<WhiteningOperation>(layer, channels, std::move(group), std::move(name));
}

}  // namespace allnorm
