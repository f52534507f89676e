// The table of definitions, and what stands behind a norm: gamma, beta, residual, activation, threshold.
#include "launch/reference/definitions.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "launch/reference/cores.hpp"
#include "launch/reference/operations.hpp"

namespace reference {

double unit_of(allnorm::DType dtype) {
  using allnorm::DType;
  return dtype == DType::f64 ? 0x1p-53 : dtype == DType::f32 ? 0x1p-24 : dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
}
double value_tolerance(allnorm::DType dtype) { return 8 * unit_of(dtype); }

namespace {

// Half the distance of the smallest numbers.
double smallest_of(allnorm::DType dtype) {
  using allnorm::DType;
  return dtype == DType::f64 ? 0 : dtype == DType::f32 ? 0x1p-150 : dtype == DType::f16 ? 0x1p-25 : 0x1p-134;
}
double size_of(const Answer& answer, std::size_t i) {
  return std::max(std::abs(answer.values[i]), answer.sizes.empty() ? 0 : answer.sizes[i]);
}

}  // namespace

double largest_of(const Answer& answer) {
  double most = 0;
  for (std::size_t i = 0; i < answer.values.size(); ++i) most = std::max(most, size_of(answer, i));
  return most;
}

Doubles tolerances_of(const Answer& answer, allnorm::DType dtype, double statistics) {
  const bool wide = dtype == allnorm::DType::f64;
  const auto compute = wide ? dtype : allnorm::DType::f32;
  const double made = answer.rounding == Rounding::statistic ? 0 : value_tolerance(compute);
  const double relative = answer.follows * (answer.exact + (wide ? 0 : statistics + answer.narrow));
  Doubles all;
  for (std::size_t i = 0; i < answer.values.size(); ++i) {
    const double size = size_of(answer, i);
    double one = made * size + relative * (answer.by_statistics.empty() ? size : answer.by_statistics[i]);
    if (answer.rounding == Rounding::value && dtype != compute)
      one += std::max(unit_of(dtype) * (std::abs(answer.values[i]) + one), smallest_of(dtype));
    all.push_back(one);
  }
  return all;
}

namespace {

const Array* find(const Tensors& given, std::string_view name) {
  const auto found = given.find(name);
  return found == given.end() ? nullptr : &found->second;
}
const Array& get(const Tensors& given, std::string_view name) { return given.find(name)->second; }
Doubles values_or_none(const Tensors& given, std::string_view name) {
  const Array* found = find(given, name);
  return found == nullptr ? Doubles{} : found->v;
}
Answer value(const Values& values, Rounding rounding = Rounding::value) {
  return {values.v, rounding, values.sizes, values.by_statistics};
}

// ---- gamma and beta ------------------------------------------------------------------------------------------------

/// Which values share one of gamma or beta.
enum class Per : std::uint8_t { channel, trailing, place, position, instance, value };

/// Adds to gamma or to beta of every value.
struct AffinePart {
  std::string_view tensor;
  bool gamma;  ///< or beta
  Per per;
  double otherwise = 0;  ///< in place of a tensor that is not given
  double more = 0;       ///< added to one that is
};

/// Of an element: the entry of a part's tensor and how much of it counts.
struct Share {
  std::size_t entry;
  double share;
};
std::vector<Share> shares_of(const AffinePart& part, const Tensors& given, const Array& x, Int i) {
  const Int S = elements({x.shape.begin() + 2, x.shape.end()}), C = x.shape[1], n = i / (C * S), c = i / S % C,
            s = i % S;
  switch (part.per) {
    case Per::trailing:
      return {{at(i % static_cast<Int>(get(given, part.tensor).v.size())), 1}};
    case Per::place:
      return {{at(s), 1}};
    case Per::position:
      return {{at(n * S + s), 1}};
    case Per::instance:
      return {{at(n * C + c), 1}};
    case Per::value:
      return {{at(i), 1}};
    case Per::channel:
      break;
  }
  const Array* choice = find(given, "labels") != nullptr ? find(given, "labels") : find(given, "styles");
  if (choice == nullptr) return {{at(c), 1}};
  if (choice->shape.size() == 1) return {{at(static_cast<Int>(choice->v[at(n)]) * C + c), 1}};
  std::vector<Share> mixture;
  for (Int k = 0; k < choice->shape[1]; ++k)
    mixture.push_back({at(k * C + c), choice->v[at(n * choice->shape[1] + k)]});
  return mixture;
}
/// What a table that is not given stands for: each of its entries is 1, or 0.
double missing(const AffinePart& part, const Tensors& given, const Array& x, Int i) {
  const Array* styles = find(given, "styles");
  if (part.per != Per::channel || styles == nullptr || styles->shape.size() == 1) return part.otherwise;
  double sum = 0;
  for (const Share& one : shares_of(part, given, x, i)) sum += one.share * part.otherwise;
  return sum;
}

class Affine final : public Definition {
 public:
  Affine(std::unique_ptr<Core> core, std::vector<AffinePart> parts, const NormOptions& o)
      : core_(std::move(core)), parts_(std::move(parts)), o_(o) {}

  Answers forward(const Tensors& given, bool training) override {
    Answers out;
    const Array& x = get(given, "input");
    z_ = core_->forward(given, training, out);
    for (auto& [name, answer] : out) answer = like_core(answer);
    const Array *residual = find(given, "residual"), *tau = find(given, "tau");
    const std::size_t count = z_.v.size();
    gamma_.assign(count, {});
    slope_.assign(count, 1);
    distances_.clear();
    Values y(count);
    for (std::size_t i = 0; i < count; ++i) {
      Sum beta;
      for (const AffinePart& part : parts_)
        add_amount(part, given, x, static_cast<Int>(i), part.gamma ? gamma_[i] : beta);
      Sum pre;
      pre.add(gamma_[i].value * z_.v[i], gamma_[i].size * z_.sizes[i], gamma_[i].size * z_.by_statistics[i]);
      pre.add(1, beta);
      if (residual != nullptr) pre.add(residual->v[i]);
      const double level = tau == nullptr ? 0 : tau->v[channel(x, i)];
      if (tau != nullptr || o_.activation.kind != allnorm::ActivationKind::identity)
        distances_.push_back(static_cast<double>(std::abs(pre.value - level)));
      if (pre.value < level || (tau == nullptr && pre.value == 0)) bend(pre, i, tau != nullptr, level);
      y.set(i, pre);
    }
    out["output"] = like_core(value(y));
    return out;
  }

  Answers backward(const Tensors& given) override {
    Answers out;
    const Array &x = get(given, "input"), &dy = get(given, "grad_output");
    const Array* tau = find(given, "tau");
    Array g = zeros(x.shape), dz = zeros(x.shape);
    Doubles sizes;  // of dz
    std::vector<Sum> dtau(tau == nullptr ? 0 : tau->v.size());
    for (std::size_t i = 0; i < g.v.size(); ++i) {
      g.v[i] = slope_[i] * dy.v[i];
      dz.v[i] = static_cast<double>(gamma_[i].value) * g.v[i];
      sizes.push_back(static_cast<double>(gamma_[i].size) * std::abs(g.v[i]));
      if (tau != nullptr) dtau[channel(x, i)].add(dy.v[i] - g.v[i]);
    }
    for (const AffinePart& part : parts_)
      if (const Array* tensor = find(given, part.tensor)) tell_part(part, given, x, g.v, tensor->v.size(), out);
    if (tau != nullptr) tell("grad_tau", dtau, Rounding::parameter, out);
    if (find(given, "residual") != nullptr) {
      std::vector<Sum> all(g.v.size());
      for (std::size_t i = 0; i < all.size(); ++i) all[i].add(g.v[i]);
      tell("grad_residual", all, Rounding::value, out);
    }
    const Values dx = core_->backward(dz, sizes, given, out);
    for (auto& [name, answer] : out) answer = like_core(answer);
    out["grad_input"] = like_core(value(dx));
    return out;
  }

  Doubles distances() const override { return distances_; }

 private:
  static void add_amount(const AffinePart& part, const Tensors& given, const Array& x, Int i, Sum& sum) {
    const Array* tensor = find(given, part.tensor);
    if (tensor == nullptr) return sum.add(missing(part, given, x, i));
    sum.add(part.more);
    for (const Share& one : shares_of(part, given, x, i)) sum.add(Real(one.share) * tensor->v[one.entry]);
  }
  static std::size_t channel(const Array& x, std::size_t i) {
    return i / at(elements({x.shape.begin() + 2, x.shape.end()})) % at(x.shape[1]);
  }
  // Below a threshold, or the corner of an activation.
  void bend(Sum& y, std::size_t i, bool threshold, double level) {
    if (threshold) {
      y.value = level;
      slope_[i] = 0;
    } else if (o_.activation.kind != allnorm::ActivationKind::identity) {
      slope_[i] = o_.activation.kind == allnorm::ActivationKind::relu ? 0 : o_.activation.slope;
      y.value *= slope_[i];
    }
  }
  Answer like_core(Answer answer) const {
    const Answer accuracy = core_->accuracy();
    answer.follows = accuracy.follows, answer.exact = accuracy.exact, answer.narrow = accuracy.narrow;
    return answer;
  }
  void tell(const std::string& name, const std::vector<Sum>& sums, Rounding rounding, Answers& out) const {
    Values values(sums.size());
    for (std::size_t i = 0; i < sums.size(); ++i) values.set(i, sums[i]);
    out[name] = like_core(value(values, rounding));
  }
  void tell_part(const AffinePart& part, const Tensors& given, const Array& x, const Doubles& g, std::size_t size,
                 Answers& out) const {
    std::vector<Sum> sums(size);
    for (std::size_t i = 0; i < g.size(); ++i)
      for (const Share& one : shares_of(part, given, x, static_cast<Int>(i))) {
        const Real by = Real(one.share) * g[i];
        if (part.gamma)
          sums[one.entry].add(by * z_.v[i], std::abs(by) * z_.sizes[i], std::abs(by) * z_.by_statistics[i]);
        else
          sums[one.entry].add(by);
      }
    const bool alone = part.per == Per::value || part.per == Per::position;  // of the input's type
    tell("grad_" + std::string(part.tensor), sums, alone ? Rounding::value : Rounding::parameter, out);
  }

  std::unique_ptr<Core> core_;
  std::vector<AffinePart> parts_;
  NormOptions o_;
  Values z_;
  std::vector<Sum> gamma_;
  Doubles slope_, distances_;
};

// ---- layers without ------------------------------------------------------------------------------------------------

/// One that has no state: `call` makes all answers at once, from a grad_output of zeros at first.
class Stateless final : public Definition {
 public:
  using Call = Answers (*)(const NormOptions& o, const Tensors& given);
  Stateless(Call call, const NormOptions& o) : call_(call), o_(o) {}

  Answers forward(const Tensors& given, bool) override {
    Tensors all = given;
    const Array *x = find(given, "input"), *vectors = find(given, "weight");
    all["grad_output"] = zeros(vectors != nullptr ? std::vector<Int>{x->shape[0], vectors->shape[0]} : x->shape);
    Answers made = call_(o_, all);
    return {{"output", made["output"]}};
  }
  Answers backward(const Tensors& given) override {
    Answers made = call_(o_, given);
    made.erase("output");
    return made;
  }

 private:
  Call call_;
  NormOptions o_;
};

Answers call_cosine(const NormOptions& o, const Tensors& t) {
  const Cosine made = cosine(o, get(t, "input"), get(t, "weight"), get(t, "grad_output"));
  return {
      {"output", value(made.y)}, {"grad_input", value(made.dx)}, {"grad_weight", value(made.dw, Rounding::parameter)}};
}
Answers call_neighbours(const NormOptions& o, const Tensors& t) {
  const Neighbours made = neighbours(o, get(t, "input"), get(t, "grad_output"));
  return {{"output", value(made.y)}, {"grad_input", value(made.dx)}};
}
Answers call_adapt(const NormOptions& o, const Tensors& t) {
  const Adapted made = adapt(o, get(t, "input"), get(t, "style"), get(t, "grad_output"));
  return {{"output", value(made.y)}, {"grad_input", value(made.dx)}, {"grad_style", value(made.dstyle)}};
}
Answers call_weight_norm(const NormOptions& o, const Tensors& t) {
  const WeightNorm made = weight_norm(o.dim, get(t, "input"), values_or_none(t, "g"), get(t, "grad_output"));
  Answers all{{"output", value(made.w)}, {"grad_input", value(made.dv)}};
  if (find(t, "g") != nullptr) all["grad_g"] = value(made.dg, Rounding::parameter);
  return all;
}
Answers call_standardize(const NormOptions& o, const Tensors& t) {
  const Standardized made = standardize(o, get(t, "input"), values_or_none(t, "gain"), get(t, "grad_output"));
  Answers all{{"output", value(made.y)}, {"grad_input", value(made.dw)}};
  if (find(t, "gain") != nullptr) all["grad_gain"] = value(made.dgain, Rounding::parameter);
  return all;
}

// ---- the table -----------------------------------------------------------------------------------------------------

using Made = std::unique_ptr<Definition>;
Made affine(std::unique_ptr<Core> core, std::vector<AffinePart> parts, const NormOptions& o) {
  return std::make_unique<Affine>(std::move(core), std::move(parts), o);
}
std::vector<AffinePart> weight_and_bias(Per per) { return {{"weight", true, per, 1}, {"bias", false, per}}; }
constexpr AffinePart one{"", true, Per::value, 1};  // a gamma that is always 1

Made batch(const NormOptions& o, Int C) { return affine(batch_core(o, C), weight_and_bias(Per::channel), o); }
Made layer(const NormOptions& o, Int) { return affine(layer_core(o, true), weight_and_bias(Per::trailing), o); }
Made rms(const NormOptions& o, Int) { return affine(layer_core(o, false), {{"weight", true, Per::trailing, 1}}, o); }
Made group(const NormOptions& o, Int) { return affine(group_core(o), weight_and_bias(Per::channel), o); }
Made instance(const NormOptions& o, Int C) { return affine(instance_core(o, C), weight_and_bias(Per::channel), o); }
Made response(const NormOptions& o, Int) { return affine(response_core(o), weight_and_bias(Per::channel), o); }
Made positional(const NormOptions& o, Int) { return affine(positional_core(o), weight_and_bias(Per::place), o); }
Made shortcut(const NormOptions& o, Int) {
  return affine(no_core(), {{"gamma", true, Per::position, 1}, {"beta", false, Per::position}}, o);
}
Made switching(const NormOptions& o, Int C) { return affine(switchable_core(o, C), weight_and_bias(Per::channel), o); }
Made conditional(std::unique_ptr<Core> core, const NormOptions& o) {
  std::vector<AffinePart> parts = weight_and_bias(Per::channel);
  parts.insert(parts.end(), {{"delta_weight", true, Per::instance}, {"delta_bias", false, Per::instance}});
  return affine(std::move(core), parts, o);
}
Made conditional_batch(const NormOptions& o, Int C) { return conditional(batch_core(o, C), o); }
Made conditional_instance(const NormOptions& o, Int C) { return conditional(instance_core(o, C), o); }
Made maps(const NormOptions& o, Int C) {
  return affine(o.base == allnorm::Base::batch_norm ? batch_core(o, C) : instance_core(o, C),
                {{"gamma", true, Per::value, 0, o.plus_one ? 1.0 : 0.0}, {"beta", false, Per::value}}, o);
}
Made mean_only(const NormOptions& o, Int C) {
  return affine(mean_only_core(o, C), {one, {"bias", false, Per::channel}}, o);
}
Made decorrelated(const NormOptions& o, Int C) { return affine(whitening_core(o, C, 0), {one}, o); }
Made iterative(const NormOptions& o, Int C) { return affine(whitening_core(o, C, o.iterations), {one}, o); }
template <Stateless::Call call>
Made stateless(const NormOptions& o, Int) {
  return std::make_unique<Stateless>(call, o);
}

using Text = std::string_view;
// All parts of the batch family at once but the compensation, which needs a convolution.
constexpr Text composed = "minibatches=2:window=2:compensate=false:renorm=true:momentum=0.3:r_max=1.1:d_max=0.2";
constexpr Text of_batch[] = {"", "activation=relu:momentum=0.3",
                             "eps=0.1:eps_place=outside:activation=leaky_relu:slope=0.2",
                             "momentum=cumulative:unbiased_running_var=false", composed};
constexpr Text of_sync[] = {"momentum=0.3", composed};
constexpr Text of_renorm[] = {"",
                              "momentum=0.3:r_max=1.1:d_max=0.2",
                              "variant=var:momentum=0.3:r_max=1.2:d_max=0.3",
                              "momentum=0.3:r_max=1@0,1.3@4:d_max=0@1,0.2@2,0.3@5",
                              "eps=0.1:eps_place=outside:momentum=0.3:r_max=1e6:d_max=1e6",
                              composed};
constexpr Text of_window[] = {"conv_padding=1", "window=3:guard=drop:burn_in=1:fill_in_burn_in=true:momentum=0.3",
                              "window=3:running_source=window:conv_groups=2:conv_stride=2", composed};
constexpr Text of_minibatches[] = {"minibatches=2", "minibatches=3:weighting=count:running=every:momentum=0.3",
                                   composed};
constexpr Text of_layer[] = {"", "activation=relu", "eps=0.1"};
constexpr Text of_group[] = {"groups=2", "groups=6:activation=leaky_relu", "groups=1:eps=0.1"};
constexpr Text of_instance[] = {"", "track=true:momentum=0.3", "eps=0.1:activation=relu"};
constexpr Text of_response[] = {"", "eps=0.1"};
constexpr Text of_positional[] = {"", "unbiased=true", "eps=0.1"};
constexpr Text of_nothing[] = {""};
constexpr Text of_switchable[] = {"momentum=0.3", "unbiased_instance_var=true:eps=0.1", "shard=space:momentum=0.3"};
constexpr Text of_conditional_batch[] = {"", composed, "activation=relu"};
constexpr Text of_conditional_instance[] = {"", "eps=0.1"};
constexpr Text of_adaptive[] = {"", "alpha=0.25:eps=0.1", "unbiased=true"};
constexpr Text of_maps[] = {"", "base=instance_norm:activation=relu", "plus_one=false:momentum=0.3", composed};
constexpr Text of_neighbours[] = {"",
                                  "alpha=0.3",
                                  "alpha=0.3:size=4:beta=0.6:k=2",
                                  "alpha=0.3:size=4:convention=onnx",
                                  "alpha=0.3:size=3:convention=caffe:beta=0.5",
                                  "alpha=0.3:size=4:convention=alexnet"};
constexpr Text of_standardized[] = {"", "unbiased=true:eps=0.1", "eps=0.1:eps_place=outside"};
constexpr Text of_weight_norm[] = {"", "dim=1", "dim=-1"};
constexpr Text of_cosine[] = {"", "centred=true:eps=0.1", "eps=0.1:eps_mode=max", "eps=0.1:eps_mode=sq:centred=true"};
constexpr Text of_mean_only[] = {"", "momentum=0.3"};
constexpr Text of_decorrelated[] = {"group_size=2", "group_size=3:momentum=0.3", "group_size=6:eps=0.01"};
constexpr Text of_iterative[] = {"group_size=2", "group_size=3:momentum=0.3:iterations=3",
                                 "group_size=6:eps=0.01:iterations=1"};

constexpr Defined table[] = {
    {"batch_norm", of_batch, batch},
    {"sync_batch_norm", of_sync, batch},
    {"batch_renorm", of_renorm, batch},
    {"cross_iteration_batch_norm", of_window, batch},
    {"cross_mini_batch_norm", of_minibatches, batch},
    {"layer_norm", of_layer, layer},
    {"rms_norm", of_layer, rms},
    {"group_norm", of_group, group},
    {"instance_norm", of_instance, instance},
    {"filter_response_norm", of_response, response},
    {"positional_norm", of_positional, positional},
    {"moment_shortcut", of_nothing, shortcut},
    {"switchable_norm", of_switchable, switching},
    {"conditional_batch_norm", of_conditional_batch, conditional_batch},
    {"conditional_instance_norm", of_conditional_instance, conditional_instance},
    {"adaptive_instance_norm", of_adaptive, stateless<call_adapt>},
    {"spade", of_maps, maps},
    {"local_response_norm", of_neighbours, stateless<call_neighbours>},
    {"weight_standardization", of_standardized, stateless<call_standardize>},
    {"weight_norm", of_weight_norm, stateless<call_weight_norm>},
    {"cosine_norm", of_cosine, stateless<call_cosine>},
    {"mean_only_batch_norm", of_mean_only, mean_only},
    {"decorrelated_batch_norm", of_decorrelated, decorrelated},
    {"iterative_norm", of_iterative, iterative},
};

}  // namespace

std::span<const Defined> definitions() { return table; }

}  // namespace reference
