#include "launch/reference/cores.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "launch/reference/switchable.hpp"
#include "launch/reference/whitening.hpp"

namespace reference {

namespace {

using Int = std::int64_t;

std::size_t at(Int i) { return static_cast<std::size_t>(i); }
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
Answer statistic(const Doubles& values, double terms = 0) { return {values, Rounding::statistic, terms}; }

// Values of about 1 and their roundings: x less a mean, over a deviation.
Values normalized(const Doubles& values) {
  Values made(values.size());
  made.v = values;
  made.terms = std::max(1.0, largest(values));
  return made;
}

// The sizes of the terms of dx = (dz - mean(dz) - z mean(dz z)) * scale over each set, the largest.
double terms_of_dx(const std::vector<Int>& set, const Doubles& z, const Doubles& dz, const Doubles& scale) {
  Reals count(scale.size()), g(scale.size()), gz(scale.size());
  for (std::size_t i = 0; i < z.size(); ++i) {
    const std::size_t s = at(set[i]);
    ++count[s], g[s] += std::abs(dz[i]), gz[s] += std::abs(dz[i] * z[i]);
  }
  double most = 0;
  for (std::size_t i = 0; i < z.size(); ++i) {
    const std::size_t s = at(set[i]);
    const Real size = (std::abs(dz[i]) + g[s] / count[s] + std::abs(z[i]) * gz[s] / count[s]) * scale[s];
    most = std::max(most, static_cast<double>(size));
  }
  return most;
}
Values gradient(const Array& dx, double terms) {
  Values made(dx.v.size());
  made.v = dx.v;
  made.terms = terms;
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
  BatchCore(const NormOptions& o, Int channels) : layer_(make_layer(channels, o)) {
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
    const double size = largest(input(given).v);
    const auto tell = [&](const char* name, const Doubles& values, double terms) {
      out[name] = accuracy();
      out[name].values = values;
      out[name].rounding = Rounding::statistic;
      out[name].terms = terms;
    };
    tell("mean", result_.mean, size);
    tell("var", result_.var, 0);
    if (layer_.options.renorm) tell("r", result_.r, 1), tell("d", result_.d, 1);
    const BatchState& state = layer_.state;
    tell("running_mean", state.running_mean, size);
    tell(layer_.options.keeps_std() ? "running_std" : "running_var",
         layer_.options.keeps_std() ? state.running_std : state.running_var, 0);
    out["num_batches_tracked"] = statistic({static_cast<double>(state.num_batches_tracked)});
    Values z = normalized(result_.y[0].v);
    z.terms += largest(result_.d);
    return z;
  }
  Values backward(const Array& dz, const Tensors&, Answers&) override {
    const Array& x = inputs_.x[0];
    const auto sets = channel_sets(x);
    Doubles hat, scale;
    for (std::size_t i = 0; i < x.v.size(); ++i)
      hat.push_back((x.v[i] - result_.mean[at(sets[i])]) * result_.inv[at(sets[i])]);
    for (std::size_t c = 0; c < result_.inv.size(); ++c) scale.push_back(result_.inv[c] * result_.r[c]);
    return gradient(reference::backward(before_, inputs_, result_, {dz}).dx[0], terms_of_dx(sets, hat, dz.v, scale));
  }
  // Derivatives by the convolution's weights are sums of products, which are made in the compute type.
  Answer accuracy() const override {
    Answer made;
    made.narrow = layer_.options.compensates() ? 64 * 0x1p-24 : 0;
    return made;
  }

 private:
  Layer layer_, before_;
  Inputs inputs_;
  Result result_;
};

class MeanOnlyCore final : public Core {
 public:
  MeanOnlyCore(const NormOptions& o, Int channels) : momentum_(o.momentum), running_(at(channels)) {}

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
    const double size = largest(x.v);
    out["mean"] = statistic(mean, size);
    out["running_mean"] = statistic(running_, size);
    return normalized(z);
  }
  Values backward(const Array& dz, const Tensors&, Answers&) override {
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
  Doubles running_;
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
    if (centred_) out["mean"] = statistic(result_.mean, largest(x_.v));
    out["rstd"] = statistic(result_.rstd);
    return normalized(result_.y.v);
  }
  Values backward(const Array& dz, const Tensors&, Answers&) override {
    const auto made = centred_ ? rows_backward(x_, sets_, {}, dz, eps_) : rms_backward(x_, sets_, {}, dz, eps_);
    return gradient(made.dx, terms_of_dx(sets_.set, result_.y.v, dz.v, result_.rstd));
  }

 private:
  double eps_;
  bool centred_;
  SetsOf sets_of_;
  Array x_;
  Sets sets_;
  RowsResult result_;
};

class InstanceCore final : public Core {
 public:
  InstanceCore(const NormOptions& o, Int channels) : o_(o), mean_(at(channels)), var_(at(channels), 1) {}

  Values forward(const Tensors& given, bool training, Answers& out) override {
    x_ = input(given);
    sets_ = instance_norm_sets(x_.shape);
    own_ = training || !o_.track;
    result_ = rows_forward(x_, sets_, {}, {}, o_.eps);
    const double size = largest(x_.v);
    if (own_ && o_.track) {
      update_instance_running(result_, x_.shape, o_.momentum, mean_, var_);
      ++tracked_;
    }
    if (!own_) take_running();
    out["mean"] = statistic(result_.mean, size);
    out["rstd"] = statistic(result_.rstd);
    if (!o_.track) return normalized(result_.y.v);
    out["running_mean"] = statistic(mean_, size);
    out["running_var"] = statistic(var_);
    out["num_batches_tracked"] = statistic({static_cast<double>(tracked_)});
    return normalized(result_.y.v);
  }
  Values backward(const Array& dz, const Tensors&, Answers&) override {
    const double terms = terms_of_dx(sets_.set, result_.y.v, dz.v, result_.rstd);
    if (own_) return gradient(rows_backward(x_, sets_, {}, dz, o_.eps).dx, terms);
    Array dx = dz;
    for (std::size_t i = 0; i < dx.v.size(); ++i) dx.v[i] *= result_.rstd[at(sets_.set[i])];
    return gradient(dx, terms);
  }

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
  Doubles mean_, var_;
  Int tracked_ = 0;
  bool own_ = true;
  Array x_;
  Sets sets_;
  RowsResult result_;
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
    out["mean"] = statistic(result_.mean, largest(x_.v));
    out["std"] = statistic(deviation);
    return normalized(result_.y.v);
  }
  Values backward(const Array& dz, const Tensors& given, Answers&) override {
    const Doubles by_mean = of(given, "grad_mean"), by_std = of(given, "grad_std");
    const auto made = positional_backward(x_, sets_, {}, dz, by_mean, by_std, o_.eps, o_.unbiased);
    const double steepest = largest(result_.y.v);
    return gradient(made.dx, terms_of_dx(sets_.set, result_.y.v, dz.v, result_.rstd) + largest(by_mean) +
                                 steepest * largest(by_std));
  }

 private:
  NormOptions o_;
  Array x_;
  Sets sets_;
  RowsResult result_;
};

class ResponseCore final : public Core {
 public:
  explicit ResponseCore(const NormOptions& o) : o_(o) {}

  Values forward(const Tensors& given, bool, Answers&) override {
    x_ = input(given);
    layer_ = {{}, {}, {}, of(given, "eps_learned"), o_.eps};
    z_ = response_forward(x_, layer_);
    return normalized(z_.v);
  }
  Values backward(const Array& dz, const Tensors& given, Answers& out) override {
    const auto made = response_backward(x_, layer_, dz);
    const Sets sets = instance_norm_sets(x_.shape);
    Doubles rstd(at(sets.sets), 0);
    for (std::size_t i = 0; i < x_.v.size(); ++i)
      if (x_.v[i] != 0) rstd[at(sets.set[i])] = z_.v[i] / x_.v[i];
    if (given.count("eps_learned") > 0) {
      Reals sizes(at(sets.affines));
      for (std::size_t i = 0; i < x_.v.size(); ++i) {
        const double r = rstd[at(sets.set[i])];
        sizes[at(sets.affine[i])] += std::abs(dz.v[i] * z_.v[i]) * r * r / 2;
      }
      out["grad_eps_learned"] = {made.deps, Rounding::parameter, largest(Doubles(sizes.begin(), sizes.end()))};
    }
    return gradient(made.dx, terms_of_dx(sets.set, z_.v, dz.v, rstd));
  }

 private:
  NormOptions o_;
  Response layer_;
  Array x_, z_;
};

// ---- mixtures, whole matrices, nothing -----------------------------------------------------------------------------

class SwitchableCore final : public Core {
 public:
  SwitchableCore(const NormOptions& o, Int channels) : o_(o) {
    p_ = {Doubles(at(channels), 1), Doubles(at(channels), 0), {}, {},
          Doubles(at(channels), 0), Doubles(at(channels), 1)};
  }

  Values forward(const Tensors& given, bool training, Answers& out) override {
    x_ = input(given);
    o_.training = training;
    p_.mean_logits = logits(given, "mean_logits");
    p_.var_logits = logits(given, "var_logits");
    before_ = p_;
    const Switchable made = switchable({x_}, {zeros(x_.shape)}, p_, o_);
    p_.running_mean = made.running_mean;
    p_.running_var = made.running_var;
    const double size = largest(x_.v);
    out["running_mean"] = statistic(made.running_mean, size);
    out["running_var"] = statistic(made.running_var, 0);
    return normalized(made.y[0]);
  }
  Values backward(const Array& dz, const Tensors& given, Answers& out) override {
    const Switchable made = switchable({x_}, {dz}, before_, o_);
    if (given.count("mean_logits") > 0)
      out["grad_mean_logits"] = {made.dmean_logits[0], Rounding::parameter, made.mean_terms};
    if (given.count("var_logits") > 0)
      out["grad_var_logits"] = {made.dvar_logits[0], Rounding::parameter, made.var_terms};
    return gradient({x_.shape, made.dx[0]}, made.dx_terms);
  }

 private:
  static Doubles logits(const Tensors& given, std::string_view name) {
    const Doubles own = of(given, name);
    return own.empty() ? Doubles(3, 1) : own;
  }
  NormOptions o_;
  SwitchableParameters p_, before_;
  Array x_;
};

// How far y and dx may be off. W = S^(-1/2) follows from a covariance S with eigenvalues from l to L, |W| = l^(-1/2),
// and |dW| <= |dS| / (2 l^(3/2)): what S is off relative to |S|, W is off relative to |W| at most L / 2l times, half of
// the condition of S. Newton's steps stop on the way there and are less steep. Sums of products in double, merged and
// turned by matrices of g columns, are off by some 2 + g units; a device that sums narrower types in f32 adds its own.
// So to the roundings of a map, in units of the sums of the sizes of g products, comes the condition times these, in
// any type.
class WhiteningCore final : public Core {
 public:
  WhiteningCore(const NormOptions& o, Int channels, Int iterations)
      : o_{o.group_size, iterations, o.eps, o.momentum, true},
        mean_(at(channels)),
        whitening_(identities(channels, o.group_size)) {}

  Values forward(const Tensors& given, bool training, Answers& out) override {
    x_ = input(given);
    o_.training = training;
    before_ = {mean_, whitening_};
    const Whitening made = whiten({x_}, {zeros(x_.shape)}, o_, mean_, whitening_);
    mean_ = made.running_mean;
    whitening_ = made.running_whitening;
    condition_ = std::max(condition_, made.condition);  // the running ones are of all calls
    out["running_mean"] = statistic(mean_, largest(x_.v));
    Answer& running = out["running_whitening"] = accuracy();
    running.values = whitening_;
    running.rounding = Rounding::statistic;
    running.terms = largest(made.whitening);
    Values z(x_.v.size());
    z.v = made.y[0].v;
    z.terms = made.y_terms;
    return z;
  }
  Values backward(const Array& dz, const Tensors&, Answers&) override {
    const Whitening made = whiten({x_}, {dz}, o_, before_.first, before_.second);
    return gradient(made.dx[0], made.dx_terms);
  }
  Answer accuracy() const override {
    Answer made;
    made.follows = condition_;
    made.exact = (2 + static_cast<double>(o_.group_size)) * 0x1p-52;
    return made;
  }

 private:
  WhiteningOptions o_;
  Doubles mean_, whitening_;
  std::pair<Doubles, Doubles> before_;
  Array x_;
  double condition_ = 1;
};

class NoCore final : public Core {
 public:
  Values forward(const Tensors& given, bool, Answers&) override { return normalized(input(given).v); }
  Values backward(const Array& dz, const Tensors&, Answers&) override { return gradient(dz, largest(dz.v)); }
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
