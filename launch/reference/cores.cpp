#include "launch/reference/cores.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "launch/reference/switchable.hpp"
#include "launch/reference/whitening.hpp"

namespace reference {

namespace {

double largest(const Doubles& values) {
  double most = 0;
  for (const double v : values) most = std::max(most, std::abs(v));
  return most;
}
const Array& input(const Tensors& given) { return given.find("input")->second; }
Doubles of(const Tensors& given, std::string_view name) {
  const auto found = given.find(name);
  return found == given.end() ? Doubles{} : found->second.v;
}
Answer statistic(const Doubles& values, const Doubles& sizes = {}) { return {values, Rounding::statistic, sizes}; }
// Without values: what the error of statistics is multiplied by.
Answer following(double times) {
  Answer made;
  made.follows = times;
  return made;
}

// How z = (x - mean) * scale + offset comes about, of each set.
struct Scaled {
  Doubles mean{}, scale{};  // no mean: nothing is subtracted
  Doubles furthest{};       // the largest |x| that the mean is of, which its error goes by
  Doubles offset{};         // empty: none
  Doubles offset_by{};      // with it: what it goes by, per relative error of the statistics
};

// The largest of |x| over each set.
Doubles furthest_of(const std::vector<Int>& set, const Doubles& x, std::size_t sets) {
  Doubles most(sets);
  for (std::size_t i = 0; i < x.size(); ++i) most[at(set[i])] = std::max(most[at(set[i])], std::abs(x[i]));
  return most;
}

// How many times the error of a sum about any of the values shows in the variance, in the worst of the sets.
double spread_of(const std::vector<Int>& set, const Doubles& x, std::size_t sets) {
  Reals count(sets), mean(sets), var(sets), most(sets);
  for (std::size_t i = 0; i < x.size(); ++i) ++count[at(set[i])], mean[at(set[i])] += x[i];
  for (std::size_t s = 0; s < sets; ++s) mean[s] /= std::max<Real>(1, count[s]);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const Real distance = x[i] - mean[at(set[i])], square = distance * distance;
    var[at(set[i])] += square / count[at(set[i])];
    most[at(set[i])] = std::max(most[at(set[i])], square);
  }
  Real worst = 1;
  for (std::size_t s = 0; s < sets; ++s)
    if (var[s] > 0) worst = std::max(worst, 1 + most[s] / var[s]);
  return static_cast<double>(worst);
}

// x and the mean are rounded before one is taken from the other, so z is right to a rounding of theirs.
Values normalized(const std::vector<Int>& set, const Doubles& x, const Doubles& z, const Scaled& of) {
  Values made(z.size());
  made.v = z;
  for (std::size_t i = 0; i < z.size(); ++i) {
    const std::size_t s = at(set[i]);
    made.sizes[i] = (std::abs(x[i]) + (of.mean.empty() ? 0 : std::abs(of.mean[s]))) * of.scale[s] +
                    (of.offset.empty() ? 0 : std::abs(of.offset[s]));
    made.by_statistics[i] = std::abs(z[i]) + (of.mean.empty() ? 0 : of.furthest[s] * of.scale[s]) +
                            (of.offset.empty() ? 0 : of.offset_by[s]);
  }
  return made;
}

// The sizes of the terms of dx = (dz - mean(dz) - z mean(dz z)) * scale over each set, from those of dz and z.
Doubles sizes_of_dx(const std::vector<Int>& set, const Doubles& z, const Doubles& dz, const Doubles& scale) {
  Reals count(scale.size()), g(scale.size()), gz(scale.size());
  for (std::size_t i = 0; i < z.size(); ++i) {
    const std::size_t s = at(set[i]);
    ++count[s], g[s] += dz[i], gz[s] += Real(dz[i]) * z[i];
  }
  Doubles sizes;
  for (std::size_t i = 0; i < z.size(); ++i) {
    const std::size_t s = at(set[i]);
    sizes.push_back(static_cast<double>((dz[i] + g[s] / count[s] + z[i] * gz[s] / count[s]) * scale[s]));
  }
  return sizes;
}
// `sizes`: of dz.
Values gradient(const Array& dx, const std::vector<Int>& set, const Values& z, const Doubles& sizes,
                const Doubles& scale) {
  Values made(dx.v.size());
  made.v = dx.v;
  made.sizes = sizes_of_dx(set, z.sizes, sizes, scale);
  made.by_statistics = sizes_of_dx(set, z.by_statistics, sizes, scale);
  return made;
}

std::vector<Int> channel_sets(const Array& x) {
  const Int S = elements({x.shape.begin() + 2, x.shape.end()});
  std::vector<Int> set;
  for (Int i = 0; i < static_cast<Int>(x.v.size()); ++i) set.push_back(i / S % x.shape[1]);
  return set;
}

// ---- statistics of a channel ---------------------------------------------------------------------------------------

class BatchCore final : public Core {
 public:
  BatchCore(const NormOptions& o, Int channels) : layer_(make_layer(channels, o)), furthest_(at(channels)) {
    layer_.options.activation = {};  // behind gamma and beta
  }

  Values forward(const Tensors& given, bool training, Answers& out) override {
    const auto conv = given.find("conv_input");
    inputs_ = {{input(given)}, {}, {}, {}};
    if (conv != given.end())
      inputs_.conv_input = {conv->second}, inputs_.conv_weight = given.find("conv_weight")->second;
    layer_.options.training = training;
    before_ = layer_;
    result_ = reference::forward(layer_, inputs_);
    const Array& x = inputs_.x[0];
    const auto sets = channel_sets(x);
    const Doubles now = furthest_of(sets, x.v, furthest_.size());
    for (std::size_t c = 0; c < now.size(); ++c) furthest_[c] = std::max(furthest_[c], now[c]);
    spread_ = std::max(spread_, spread_of(sets, x.v, now.size()));
    Scaled scaled{result_.mean, result_.inv, furthest_, {}, {}};
    Doubles offsets;
    for (std::size_t c = 0; c < now.size(); ++c) offsets.push_back(furthest_[c] / running_sigma(before_.state, c));
    out["mean"] = statistic(result_.mean, furthest_);
    out["var"] = statistic(result_.var);
    if (layer_.options.renorm) out["r"] = statistic(result_.r), out["d"] = statistic(result_.d, offsets);
    const BatchState& state = layer_.state;
    out["running_mean"] = statistic(state.running_mean, furthest_);
    if (layer_.options.keeps_std())
      out["running_std"] = statistic(state.running_std);
    else
      out["running_var"] = statistic(state.running_var);
    out["num_batches_tracked"] = statistic({static_cast<double>(state.num_batches_tracked)});
    Doubles hat;
    for (std::size_t i = 0; i < x.v.size(); ++i) {
      const std::size_t c = at(sets[i]);
      hat.push_back((x.v[i] - result_.mean[c]) * result_.inv[c]);
    }
    hat_ = normalized(sets, x.v, hat, scaled);
    for (std::size_t c = 0; c < now.size(); ++c) scaled.scale[c] *= result_.r[c];
    if (layer_.options.renorm && training) scaled.offset = result_.d, scaled.offset_by = offsets;
    return normalized(sets, x.v, result_.y[0].v, scaled);
  }
  Values backward(const Array& dz, const Doubles& sizes, const Tensors&, Answers&) override {
    const Array& x = inputs_.x[0];
    Doubles scale;
    for (std::size_t c = 0; c < result_.inv.size(); ++c) scale.push_back(result_.inv[c] * result_.r[c]);
    return gradient(reference::backward(before_, inputs_, result_, {dz}).dx[0], channel_sets(x), hat_, sizes, scale);
  }
  // Derivatives by the convolution's weights are sums of products, which are made in the compute type.
  Answer accuracy() const override {
    Answer made;
    made.follows = spread_;
    made.narrow = layer_.options.compensates() ? 64 * 0x1p-24 : 0;
    return made;
  }

 private:
  double running_sigma(const BatchState& state, std::size_t c) const {
    const NormOptions& o = layer_.options;
    if (o.keeps_std()) return state.running_std[c];
    return o.eps_place == EpsPlace::outside ? std::sqrt(state.running_var[c]) + o.eps
                                            : std::sqrt(state.running_var[c] + o.eps);
  }

  Layer layer_, before_;
  Inputs inputs_;
  Result result_;
  Doubles furthest_;   // (C): of all calls
  double spread_ = 1;  // of all calls
  Values hat_;         // before r and d
};

class MeanOnlyCore final : public Core {
 public:
  MeanOnlyCore(const NormOptions& o, Int channels)
      : momentum_(o.momentum), running_(at(channels)), furthest_(at(channels)) {}

  Values forward(const Tensors& given, bool training, Answers& out) override {
    const Array& x = input(given);
    sets_ = channel_sets(x);
    training_ = training;
    Reals sum(running_.size());
    for (std::size_t i = 0; i < x.v.size(); ++i) sum[at(sets_[i])] += x.v[i];
    const Real count = static_cast<Real>(x.v.size() / running_.size());
    Doubles mean = running_, z;
    for (std::size_t c = 0; c < mean.size() && training; ++c) {
      mean[c] = static_cast<double>(sum[c] / count);
      running_[c] += momentum_ * (mean[c] - running_[c]);
    }
    for (std::size_t i = 0; i < x.v.size(); ++i) z.push_back(x.v[i] - mean[at(sets_[i])]);
    const Doubles now = furthest_of(sets_, x.v, mean.size());
    for (std::size_t c = 0; c < now.size(); ++c) furthest_[c] = std::max(furthest_[c], now[c]);
    out["mean"] = statistic(mean, furthest_);
    out["running_mean"] = statistic(running_, furthest_);
    return normalized(sets_, x.v, z, {mean, Doubles(mean.size(), 1), furthest_, {}, {}});
  }
  Values backward(const Array& dz, const Doubles&, const Tensors&, Answers&) override {
    std::vector<Sum> sums(running_.size());
    for (std::size_t i = 0; i < dz.v.size(); ++i) sums[at(sets_[i])].add(dz.v[i]);
    const Real count = static_cast<Real>(dz.v.size() / running_.size());
    Values dx(dz.v.size());
    for (std::size_t i = 0; i < dz.v.size(); ++i) {
      Sum one;
      one.add(dz.v[i]);
      if (training_) one.add(-1 / count, sums[at(sets_[i])]);
      dx.set(i, one);
    }
    return dx;
  }

 private:
  double momentum_;
  Doubles running_, furthest_;  // (C)
  std::vector<Int> sets_;
  bool training_ = true;
};

// ---- statistics within a sample ------------------------------------------------------------------------------------

class RowsCore final : public Core {
 public:
  using SetsOf = std::function<Sets(const std::vector<Int>& shape)>;
  RowsCore(double eps, bool centred, SetsOf sets_of) : eps_(eps), centred_(centred), sets_of_(std::move(sets_of)) {}

  Values forward(const Tensors& given, bool, Answers& out) override {
    x_ = input(given);
    sets_ = sets_of_(x_.shape);
    result_ = centred_ ? rows_forward(x_, sets_, {}, {}, eps_) : rms_forward(x_, sets_, {}, eps_);
    Scaled scaled{{}, result_.rstd, furthest_of(sets_.set, x_.v, at(sets_.sets)), {}, {}};
    spread_ = spread_of(sets_.set, x_.v, at(sets_.sets));
    if (centred_) {
      scaled.mean = result_.mean;
      out["mean"] = statistic(result_.mean, scaled.furthest);
    }
    out["rstd"] = statistic(result_.rstd);
    return z_ = normalized(sets_.set, x_.v, result_.y.v, scaled);
  }
  Values backward(const Array& dz, const Doubles& sizes, const Tensors&, Answers&) override {
    const auto made = centred_ ? rows_backward(x_, sets_, {}, dz, eps_) : rms_backward(x_, sets_, {}, dz, eps_);
    return gradient(made.dx, sets_.set, z_, sizes, result_.rstd);
  }
  Answer accuracy() const override { return following(spread_); }

 private:
  double eps_, spread_ = 1;
  bool centred_;
  SetsOf sets_of_;
  Array x_;
  Sets sets_;
  RowsResult result_;
  Values z_;
};

class InstanceCore final : public Core {
 public:
  InstanceCore(const NormOptions& o, Int channels)
      : o_(o), mean_(at(channels)), var_(at(channels), 1), furthest_(at(channels)) {}

  Values forward(const Tensors& given, bool training, Answers& out) override {
    x_ = input(given);
    sets_ = instance_norm_sets(x_.shape);
    own_ = training || !o_.track;
    result_ = rows_forward(x_, sets_, {}, {}, o_.eps);
    Scaled scaled{{}, {}, furthest_of(sets_.set, x_.v, at(sets_.sets)), {}, {}};
    for (std::size_t s = 0; s < scaled.furthest.size(); ++s) {
      double& of_channel = furthest_[s % furthest_.size()];
      of_channel = std::max(of_channel, scaled.furthest[s]);
    }
    spread_ = std::max(spread_, spread_of(sets_.set, x_.v, at(sets_.sets)));
    if (own_ && o_.track) {
      update_instance_running(result_, x_.shape, o_.momentum, mean_, var_);
      ++tracked_;
    }
    if (!own_) take_running();
    scaled.mean = result_.mean, scaled.scale = result_.rstd;
    for (std::size_t s = 0; s < scaled.furthest.size() && !own_; ++s)
      scaled.furthest[s] = furthest_[s % furthest_.size()];
    out["mean"] = statistic(result_.mean, scaled.furthest);
    out["rstd"] = statistic(result_.rstd);
    z_ = normalized(sets_.set, x_.v, result_.y.v, scaled);
    if (!o_.track) return z_;
    out["running_mean"] = statistic(mean_, furthest_);
    out["running_var"] = statistic(var_);
    out["num_batches_tracked"] = statistic({static_cast<double>(tracked_)});
    return z_;
  }
  Values backward(const Array& dz, const Doubles& sizes, const Tensors&, Answers&) override {
    Array dx = dz;
    for (std::size_t i = 0; i < dx.v.size(); ++i) dx.v[i] *= result_.rstd[at(sets_.set[i])];
    if (own_) dx = rows_backward(x_, sets_, {}, dz, o_.eps).dx;
    return gradient(dx, sets_.set, z_, sizes, result_.rstd);
  }
  Answer accuracy() const override { return following(spread_); }

 private:
  void take_running() {
    for (std::size_t s = 0; s < result_.mean.size(); ++s) {
      result_.mean[s] = mean_[s % mean_.size()];
      result_.rstd[s] = static_cast<double>(1 / std::sqrt(Real(var_[s % var_.size()]) + o_.eps));
    }
    for (std::size_t i = 0; i < x_.v.size(); ++i) {
      const std::size_t s = at(sets_.set[i]);
      result_.y.v[i] = (x_.v[i] - result_.mean[s]) * result_.rstd[s];
    }
  }

  NormOptions o_;
  Doubles mean_, var_, furthest_;  // (C)
  double spread_ = 1;              // of all calls
  Int tracked_ = 0;
  bool own_ = true;
  Array x_;
  Sets sets_;
  RowsResult result_;
  Values z_;
};

class PositionalCore final : public Core {
 public:
  explicit PositionalCore(const NormOptions& o) : o_(o) {}

  Values forward(const Tensors& given, bool, Answers& out) override {
    x_ = input(given);
    sets_ = positional_norm_sets(x_.shape);
    result_ = positional_forward(x_, sets_, {}, {}, o_.eps, o_.unbiased);
    Doubles deviation;
    for (const double rstd : result_.rstd) deviation.push_back(1 / rstd);
    const Doubles furthest = furthest_of(sets_.set, x_.v, at(sets_.sets));
    spread_ = spread_of(sets_.set, x_.v, at(sets_.sets));
    out["mean"] = statistic(result_.mean, furthest);
    out["std"] = statistic(deviation);
    return z_ = normalized(sets_.set, x_.v, result_.y.v, {result_.mean, result_.rstd, furthest, {}, {}});
  }
  Values backward(const Array& dz, const Doubles& sizes, const Tensors& given, Answers&) override {
    const Doubles by_mean = of(given, "grad_mean"), by_std = of(given, "grad_std");
    const auto made = positional_backward(x_, sets_, {}, dz, by_mean, by_std, o_.eps, o_.unbiased);
    Values dx = gradient(made.dx, sets_.set, z_, sizes, result_.rstd);
    const double count = static_cast<double>(x_.v.size()) / static_cast<double>(result_.mean.size());
    for (std::size_t i = 0; i < dx.v.size(); ++i) {
      const std::size_t s = at(sets_.set[i]);
      const double direct = by_mean.empty() ? 0 : std::abs(by_mean[s]) / count,
                   steep = by_std.empty() ? 0 : std::abs(by_std[s]) / (o_.unbiased ? count - 1 : count);
      dx.sizes[i] += direct + steep * z_.sizes[i];
      dx.by_statistics[i] += direct + steep * z_.by_statistics[i];
    }
    return dx;
  }
  Answer accuracy() const override { return following(spread_); }

 private:
  NormOptions o_;
  double spread_ = 1;
  Array x_;
  Sets sets_;
  RowsResult result_;
  Values z_;
};

class ResponseCore final : public Core {
 public:
  explicit ResponseCore(const NormOptions& o) : o_(o) {}

  Values forward(const Tensors& given, bool, Answers&) override {
    x_ = input(given);
    layer_ = {{}, {}, {}, of(given, "eps_learned"), o_.eps};
    const Doubles z = response_forward(x_, layer_).v;
    const Sets sets = instance_norm_sets(x_.shape);
    rstd_.assign(at(sets.sets), 0);
    for (std::size_t i = 0; i < x_.v.size(); ++i)
      if (x_.v[i] != 0) rstd_[at(sets.set[i])] = z[i] / x_.v[i];
    spread_ = spread_of(sets.set, x_.v, at(sets.sets));
    return z_ = normalized(sets.set, x_.v, z, {{}, rstd_, {}, {}, {}});
  }
  Values backward(const Array& dz, const Doubles& sizes, const Tensors& given, Answers& out) override {
    const auto made = response_backward(x_, layer_, dz);
    const Sets sets = instance_norm_sets(x_.shape);
    if (given.count("eps_learned") > 0) {
      Doubles of_eps(at(sets.affines));
      for (std::size_t i = 0; i < x_.v.size(); ++i) {
        const double r = rstd_[at(sets.set[i])];
        of_eps[at(sets.affine[i])] += sizes[i] * std::abs(z_.v[i]) * r * r / 2;
      }
      out["grad_eps_learned"] = {made.deps, Rounding::parameter, of_eps};
    }
    return gradient(made.dx, sets.set, z_, sizes, rstd_);
  }
  Answer accuracy() const override { return following(spread_); }

 private:
  NormOptions o_;
  double spread_ = 1;
  Response layer_;
  Array x_;
  Doubles rstd_;
  Values z_;
};

// ---- mixtures, whole matrices, nothing -----------------------------------------------------------------------------

class SwitchableCore final : public Core {
 public:
  SwitchableCore(const NormOptions& o, Int channels) : o_(o), furthest_(at(channels)) {
    p_ = {Doubles(at(channels), 1), Doubles(at(channels), 0), {}, {},
          Doubles(at(channels), 0), Doubles(at(channels), 1), 0};
  }

  Values forward(const Tensors& given, bool training, Answers& out) override {
    x_ = input(given);
    o_.training = training;
    p_.mean_logits = logits(given, "mean_logits");
    p_.var_logits = logits(given, "var_logits");
    const Doubles now = furthest_of(channel_sets(x_), x_.v, furthest_.size());
    for (std::size_t c = 0; c < now.size(); ++c) furthest_[c] = std::max(furthest_[c], now[c]);
    p_.furthest = largest(furthest_);
    const Sets instances = instance_norm_sets(x_.shape);
    spread_ = std::max(
        {spread_, spread_of(channel_sets(x_), x_.v, now.size()), spread_of(instances.set, x_.v, at(instances.sets))});
    before_ = p_;
    const Switchable made = switchable({x_}, {zeros(x_.shape)}, p_, o_);
    p_.running_mean = made.running_mean;
    p_.running_var = made.running_var;
    out["running_mean"] = statistic(made.running_mean, furthest_);
    out["running_var"] = statistic(made.running_var);
    return made.y[0];
  }
  Values backward(const Array& dz, const Doubles&, const Tensors& given, Answers& out) override {
    const Switchable made = switchable({x_}, {dz}, before_, o_);
    const auto tell = [&](const Values& values) {
      return Answer{values.v, Rounding::parameter, values.sizes, values.by_statistics};
    };
    if (given.count("mean_logits") > 0) out["grad_mean_logits"] = tell(made.dmean_logits[0]);
    if (given.count("var_logits") > 0) out["grad_var_logits"] = tell(made.dvar_logits[0]);
    return made.dx[0];
  }
  Answer accuracy() const override { return following(spread_); }

 private:
  static Doubles logits(const Tensors& given, std::string_view name) {
    const Doubles own = of(given, name);
    return own.empty() ? Doubles(3, 1) : own;
  }
  NormOptions o_;
  SwitchableParameters p_, before_;
  Doubles furthest_;   // (C): of all calls
  double spread_ = 1;  // likewise
  Array x_;
};

// How far y and dx may be off. W = S^(-1/2) follows from a covariance S with eigenvalues from l to L, |W| = l^(-1/2),
// and |dW| <= |dS| / (2 l^(3/2)): what S is off relative to |S|, W is off relative to |W| at most L / 2l times, half of
// the condition of S. Newton's steps stop on the way there and are less steep. Sums of products in double, merged and
// turned by matrices of g columns, are off by some 2 + g units; a device that sums narrower types in f32 adds its own.
// So to the roundings of a map, in units of the sums of the sizes of g products, comes the condition times these, in
// any type; in units of the largest of those sums, since what is known of dW is its norm.
class WhiteningCore final : public Core {
 public:
  WhiteningCore(const NormOptions& o, Int channels, Int iterations)
      : o_{o.group_size, iterations, o.eps, o.momentum, true},
        mean_(at(channels)),
        whitening_(identities(channels, o.group_size)),
        furthest_(at(channels)) {}

  Values forward(const Tensors& given, bool training, Answers& out) override {
    x_ = input(given);
    o_.training = training;
    before_ = {mean_, whitening_};
    const Whitening made = whiten({x_}, {zeros(x_.shape)}, o_, mean_, whitening_);
    mean_ = made.running_mean;
    whitening_ = made.running_whitening;
    condition_ = std::max(condition_, made.condition);  // the running ones are of all calls
    const Doubles now = furthest_of(channel_sets(x_), x_.v, mean_.size());
    for (std::size_t c = 0; c < now.size(); ++c) furthest_[c] = std::max(furthest_[c], now[c]);
    out["running_mean"] = statistic(mean_, furthest_);
    out["running_whitening"] =
        statistic(whitening_, Doubles(whitening_.size(), std::max(largest(made.whitening), largest(whitening_))));
    return with_sizes(made.y[0].v, made.y_sizes[0].v, made.y_terms);
  }
  Values backward(const Array& dz, const Doubles&, const Tensors&, Answers&) override {
    const Whitening made = whiten({x_}, {dz}, o_, before_.first, before_.second);
    return with_sizes(made.dx[0].v, made.dx_sizes[0].v, made.dx_terms);
  }
  Answer accuracy() const override {
    Answer made;
    made.follows = condition_;
    made.exact = (2 + static_cast<double>(o_.group_size)) * 0x1p-52;
    return made;
  }

 private:
  // A sum of g products in the compute type rounds some g + 2 times, where value_tolerance() has 8.
  Values with_sizes(const Doubles& values, const Doubles& sizes, double most) const {
    const double roundings = std::max(1.0, (static_cast<double>(o_.group_size) + 2) / 8);
    Values made;
    made.v = values, made.sizes = sizes;
    for (double& size : made.sizes) size *= roundings;
    made.by_statistics.assign(values.size(), most);
    return made;
  }

  WhiteningOptions o_;
  Doubles mean_, whitening_, furthest_;
  std::pair<Doubles, Doubles> before_;
  Array x_;
  double condition_ = 1;
};

class NoCore final : public Core {
 public:
  Values forward(const Tensors& given, bool, Answers&) override { return as_it_is(input(given), {}); }
  Values backward(const Array& dz, const Doubles& sizes, const Tensors&, Answers&) override {
    return as_it_is(dz, sizes);
  }

 private:
  static Values as_it_is(const Array& values, const Doubles& sizes) {
    Values made(values.v.size());
    for (std::size_t i = 0; i < values.v.size(); ++i) {
      const double size = sizes.empty() ? std::abs(values.v[i]) : sizes[i];
      made.set(i, {values.v[i], size, size});
    }
    return made;
  }
};

}  // namespace

std::unique_ptr<Core> batch_core(const NormOptions& o, Int channels) {
  return std::make_unique<BatchCore>(o, channels);
}
std::unique_ptr<Core> mean_only_core(const NormOptions& o, Int channels) {
  return std::make_unique<MeanOnlyCore>(o, channels);
}
std::unique_ptr<Core> layer_core(const NormOptions& o, bool centred) {
  return std::make_unique<RowsCore>(o.eps, centred, [trailing = o.normalized_shape.size()](const auto& shape) {
    return layer_norm_sets(shape, static_cast<int>(trailing == 0 ? shape.size() - 1 : trailing));
  });
}
std::unique_ptr<Core> group_core(const NormOptions& o) {
  return std::make_unique<RowsCore>(o.eps, true,
                                    [groups = o.groups](const auto& shape) { return group_norm_sets(shape, groups); });
}
std::unique_ptr<Core> instance_core(const NormOptions& o, Int channels) {
  return std::make_unique<InstanceCore>(o, channels);
}
std::unique_ptr<Core> positional_core(const NormOptions& o) { return std::make_unique<PositionalCore>(o); }
std::unique_ptr<Core> response_core(const NormOptions& o) { return std::make_unique<ResponseCore>(o); }
std::unique_ptr<Core> switchable_core(const NormOptions& o, Int channels) {
  return std::make_unique<SwitchableCore>(o, channels);
}
std::unique_ptr<Core> whitening_core(const NormOptions& o, Int channels, Int iterations) {
  return std::make_unique<WhiteningCore>(o, channels, iterations);
}
std::unique_ptr<Core> no_core() { return std::make_unique<NoCore>(); }

}  // namespace reference
