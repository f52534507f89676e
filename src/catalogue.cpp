// The table: one row per normalization. To add one, add a row; the command line, its help and its checks follow.
#include "allnorm/catalogue.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <string>

#include "src/attributes.hpp"

namespace allnorm {

namespace {

using O = NormOptions;

// ---- attributes ----------------------------------------------------------------------------------------------------

using attributes::with;
using attributes::Words;

constexpr Attribute momentum_attribute{
    "momentum",
    "a number from 0 to 1, or cumulative",
    "weight of this call in the running statistics (PyTorch's sense); cumulative: a plain average",
    [](O& options, std::string_view name, std::string_view value) {
      double number = options.momentum;
      const bool cumulative = value == "cumulative";
      if (!cumulative && (!attributes::parse(value, number) || !(number >= 0 && number <= 1)))
        attributes::refuse(name, value, "a number from 0 to 1, or cumulative");
      options.cumulative = cumulative;
      options.momentum = number;
    },
    [](const O& options) { return options.cumulative ? "cumulative" : attributes::text_of(options.momentum); },
    [](const O& options) { return std::bit_cast<std::uint64_t>(options.cumulative ? -1 : options.momentum); },
    [](std::uint64_t word) { return std::bit_cast<double>(word) < 0 ? "cumulative" : attributes::text_of_real(word); }};

constexpr Attribute sync_attribute{
    "sync",
    "none, world or a number of ranks",
    "over which ranks the statistics are merged",
    [](O& options, std::string_view name, std::string_view value) {
      std::int64_t ranks = 0;
      if (value == "none")
        options.sync.ranks = Sync::none;
      else if (value == "world")
        options.sync.ranks = Sync::world;
      else if (attributes::parse(value, ranks) && ranks >= 1)
        options.sync.ranks = ranks;
      else
        attributes::refuse(name, value, "none, world or a number of ranks of at least 1");
    },
    [](const O& options) -> std::string {
      if (options.sync.ranks == Sync::none) return "none";
      return options.sync.ranks == Sync::world ? "world" : std::to_string(options.sync.ranks);
    },
    [](const O& options) { return static_cast<std::uint64_t>(options.sync.ranks); },
    attributes::text_of_integer,
    Agreement::none};

constexpr Attribute eps_attribute =
    attributes::real<0, &O::eps>("eps", "added to the variance, so that nothing is divided by 0");

constexpr Attribute activation_attribute = with(
    Agreement::none, attributes::choice<Words{"identity", "relu", "leaky_relu"}, &O::activation, &Activation::kind>(
                         "activation", "applied after weight, bias and residual"));
constexpr Attribute slope_attribute =
    with(Agreement::none, attributes::real<0, &O::activation, &Activation::slope>("slope", "of leaky_relu below 0"));

constexpr Attribute eps_place_attribute = attributes::choice<Words{"inside", "outside"}, &O::eps_place>(
    "eps_place", "values are divided by sqrt(var + eps), or by sqrt(var) + eps");

constexpr Attribute training_attribute =
    with(Agreement::none,
         attributes::boolean<&O::training>("training", "false: normalize with the running statistics, change nothing"));

constexpr Attribute nonfinite_attribute = attributes::choice<Words{"propagate", "fail", "skip_update"}, &O::nonfinite>(
    "nonfinite",
    "input that is not finite, on any rank: its channels stay out of the state, or the call fails, or "
    "changes no state");

constexpr Attribute batch_attributes[] = {
    eps_attribute,
    eps_place_attribute,
    momentum_attribute,
    training_attribute,
    attributes::boolean<&O::unbiased_running_var>("unbiased_running_var", "running_var takes var * M/(M-1)"),
    activation_attribute,
    slope_attribute,
    sync_attribute,
    // Batch Renormalization
    attributes::boolean<&O::renorm>("renorm", "Batch Renormalization: correct with r and d"),
    attributes::choice<Words{"paper", "var"}, &O::variant>(
        "variant", "renorm's moving average: of sigma (running_std) or of the variance (running_var)"),
    with(Agreement::by_call,
         attributes::bound<1, &O::r_max, &O::r_max_ramp>("r_max", "r is clipped to [1/r_max, r_max]")),
    with(Agreement::by_call,
         attributes::bound<0, &O::d_max, &O::d_max_ramp>("d_max", "d is clipped to [-d_max, d_max]")),
    // Cross-Iteration BN
    attributes::integer<1, &O::window>("window", "iterations in the statistics, this one included; 1: this one alone"),
    attributes::integer<0, &O::burn_in>("burn_in", "first training calls (batches) that use their own statistics only"),
    attributes::boolean<&O::fill_in_burn_in>("fill_in_burn_in", "the window is filled during burn-in"),
    attributes::choice<Words{"clamp", "drop"}, &O::guard>(
        "guard", "a past variance below 0: take 0, or leave the iteration out"),
    attributes::boolean<&O::compensate>("compensate",
                                        "move past statistics to the present weights (first-order Taylor)"),
    attributes::choice<Words{"current", "window"}, &O::running_source>("running_source",
                                                                       "what the running statistics follow"),
    attributes::integers<1, &O::convolution, &Convolution::stride>(
        "conv_stride", "an integer of at least 1, or one per space axis", "of the convolution before the layer"),
    attributes::integers<0, &O::convolution, &Convolution::padding>(
        "conv_padding", "an integer of at least 0, or one per space axis", "zeros on both sides"),
    attributes::integers<1, &O::convolution, &Convolution::dilation>(
        "conv_dilation", "an integer of at least 1, or one per space axis", "distance between the kernel's taps"),
    attributes::integer<1, &O::convolution, &Convolution::groups>("conv_groups", "groups of the convolution"),
    // CmBN
    attributes::integer<1, &O::minibatches>("minibatches", "mini-batches (calls) of one batch that share statistics"),
    attributes::choice<Words{"uniform", "count"}, &O::weighting>(
        "weighting", "mini-batches weigh the same, or by their number of values"),
    attributes::choice<Words{"last", "every"}, &O::running>(
        "running", "running statistics move once per batch, or at every mini-batch"),
    nonfinite_attribute,
};

constexpr Attribute layer_norm_attributes[] = {
    with(Agreement::none,  // ranks may hold uneven parts of the first axis
         attributes::integers<0, &O::normalized_shape>("normalized_shape", "integers separated by commas",
                                                       "the trailing axes that share statistics; all but the first "
                                                       "when not given")),
    eps_attribute,
    activation_attribute,
    slope_attribute,
    sync_attribute,
    nonfinite_attribute,
};

constexpr Attribute group_norm_attributes[] = {
    attributes::integer<1, &O::groups>("groups", "groups of channels; a divisor of C"),
    eps_attribute,
    activation_attribute,
    slope_attribute,
    sync_attribute,
    nonfinite_attribute,
};

// ---- tensors and outputs -------------------------------------------------------------------------------------------

constexpr Axes none{}, each_position{Axis::sample, Axis::space}, each_place{Axis::space}, each_sample{Axis::sample},
    each_group{Axis::sample, Axis::group}, each_value{Axis::sample, Axis::channel, Axis::space},
    each_row{Axis::leading}, each_column{Axis::trailing}, each_weight_row{Axis::row};

constexpr TensorSpec weight(Axes axes) { return {"weight", TensorRole::parameter, axes, "gamma; 1 when not given", 1}; }
constexpr TensorSpec bias(Axes axes) { return {"bias", TensorRole::parameter, axes, "beta; 0 when not given"}; }
constexpr TensorSpec table(TensorSpec tensor, std::string_view help) {
  tensor.role = TensorRole::table;
  tensor.help = help;
  return tensor;
}
constexpr TensorSpec starting_at(double start, TensorSpec tensor) {
  tensor.start = start;
  return tensor;
}
constexpr TensorSpec residual{"residual", TensorRole::activation, every_axis, "added before the activation"};

constexpr bool keeps_std(const O& options) { return options.keeps_std(); }
constexpr bool keeps_var(const O& options) { return !options.keeps_std(); }
constexpr bool renormalizes(const O& options) { return options.renorm; }
constexpr bool compensates(const O& options) { return options.compensates(); }
constexpr std::string_view compensation = "for window > 1 unless compensate=false";

/// The first tensors or outputs of a row that shares the others.
template <class Spec, std::size_t First, std::size_t More>
constexpr std::array<Spec, First + More> joined(const Spec (&first)[First], const Spec (&more)[More]) {
  std::array<Spec, First + More> all{};
  std::copy_n(more, More, std::copy_n(first, First, all.begin()));
  return all;
}

constexpr TensorSpec shared_batch_tensors[] = {
    {"running_mean", TensorRole::state, each_channel, "0 when not given"},
    {"running_var", TensorRole::state, each_channel, "1 when not given", 1, Bound::not_negative, keeps_var,
     "running_std with renorm=true and variant=paper"},
    {"running_std", TensorRole::state, each_channel,
     "in place of running_var when renorm=true and variant=paper; 1 when not given", 1, Bound::positive, keeps_std,
     "running_var unless renorm=true and variant=paper"},
    {"num_batches_tracked", TensorRole::counter, none, "updates of the running statistics so far"},
    residual,
    {"conv_input", TensorRole::conv_input, every_axis, "what the convolution before the layer read", 0, Bound::none,
     nullptr, "", compensates, compensation},
    {"conv_weight", TensorRole::conv_weight, each_channel, "the weights that made this step's input", 0, Bound::none,
     nullptr, "", compensates, compensation},
};
constexpr TensorSpec batch_affine[] = {weight(each_channel), bias(each_channel)};
constexpr auto batch_tensors = joined(batch_affine, shared_batch_tensors);
constexpr OutputSpec batch_outputs[] = {
    {"mean", each_channel, "that the layer normalized with"},
    {"var", each_channel, "that the layer normalized with: biased, without eps"},
    {"running_mean", each_channel, "after the call, in training"},
    {"running_var", each_channel, "after the call, in training"},
    {"running_std", each_channel, "in place of running_var when renorm=true and variant=paper"},
    {"num_batches_tracked", none, "after the call, in training"},
    {"r", each_channel, "with renorm", renormalizes},
    {"d", each_channel, "with renorm", renormalizes},
    {"grad_weight", each_channel, "of this rank's values"},
    {"grad_bias", each_channel, "of this rank's values"},
    {"grad_residual", every_axis, ""},
};

constexpr TensorSpec conditional_affine[] = {
    table(weight(each_channel), "gamma: with labels a row for each of them, without (C); 1 when not given"),
    table(bias(each_channel), "beta, likewise; 0 when not given"),
    {"delta_weight", TensorRole::parameter, each_instance, "added to gamma; 0 when not given"},
    {"delta_bias", TensorRole::parameter, each_instance, "added to beta; 0 when not given"},
    {"labels", TensorRole::labels, each_sample, "integers: the row of weight and bias that each sample takes"},
};
constexpr auto conditional_batch_tensors = joined(conditional_affine, shared_batch_tensors);
constexpr OutputSpec delta_outputs[] = {
    {"grad_delta_weight", each_instance, ""},
    {"grad_delta_bias", each_instance, ""},
};
constexpr auto conditional_batch_outputs = joined(batch_outputs, delta_outputs);

constexpr bool always(const O&) { return true; }
constexpr std::string_view with_input = "with input";

constexpr Attribute conditional_instance_attributes[] = {eps_attribute, nonfinite_attribute};
constexpr TensorSpec conditional_instance_tensors[] = {
    table(weight(each_channel), "gamma: a row for each style; 1 when not given"),
    table(bias(each_channel), "beta, likewise; 0 when not given"),
    {"styles", TensorRole::mixture, each_sample,
     "integers: the row of weight and bias that each sample takes; or how much of each row", 0, Bound::none, nullptr,
     "", always, with_input},
};
constexpr OutputSpec conditional_instance_outputs[] = {{"grad_weight", each_channel, "a row for each style"},
                                                       {"grad_bias", each_channel, "a row for each style"}};

constexpr Attribute adaptive_attributes[] = {
    attributes::real<0, &O::eps>("eps", "added to the variances of input and style, so that nothing is divided by 0"),
    attributes::real<0, &O::alpha>("alpha", "how much of the output is of the style; the rest is the input"),
    attributes::boolean<&O::unbiased>("unbiased", "variances of input and style are over one value less"),
};
constexpr TensorSpec adaptive_tensors[] = {{"style", TensorRole::style, every_axis,
                                            "whose mean and deviation are taken", 0, Bound::none, nullptr, "", always,
                                            with_input}};
constexpr OutputSpec adaptive_outputs[] = {{"grad_style", every_axis, "shaped like style"}};

constexpr bool on_batch(const O& options) { return options.base == Base::batch_norm; }
constexpr bool on_instance(const O& options) { return options.base == Base::instance_norm; }
constexpr bool on_batch_keeps_var(const O& options) { return on_batch(options) && keeps_var(options); }
constexpr bool on_batch_keeps_std(const O& options) { return on_batch(options) && keeps_std(options); }
constexpr Axes statistics_of_base(const O& options) { return on_instance(options) ? each_instance : each_channel; }

constexpr Attribute map_attributes_alone[] = {
    attributes::choice<Words{"batch_norm", "instance_norm"}, &O::base>("base", "what normalizes"),
    with(Agreement::none, attributes::boolean<&O::plus_one>("plus_one", "gamma is added to 1")),
};
constexpr auto map_attributes = joined(map_attributes_alone, batch_attributes);

/// A base without running statistics has none of what is about them.
void check_base(const O& options) {
  if (on_batch(options)) return;
  constexpr std::string_view of_both[] = {"eps", "activation", "slope", "sync", "nonfinite"};
  for (const Attribute& attribute : batch_attributes) {
    if (std::find(std::begin(of_both), std::end(of_both), attribute.name) != std::end(of_both)) continue;
    const std::string must = attribute.get({}), is = attribute.get(options);
    expect(is == must, Code::invalid_argument, [&] {
      return "attribute " + std::string(attribute.name) + " is " + is + ", must be " + must +
             " where base is instance_norm";
    });
  }
}

constexpr TensorSpec maps_alone[] = {
    {"gamma", TensorRole::activation, every_axis, "added to 1 unless plus_one=false", 0, Bound::none, nullptr, "",
     always, with_input},
    {"beta", TensorRole::activation, every_axis, "", 0, Bound::none, nullptr, "", always, with_input},
};
/// Those of batch_norm exist with it alone.
constexpr auto map_tensors = [] {
  auto all = joined(maps_alone, shared_batch_tensors);
  for (TensorSpec& tensor : all) {
    if (tensor.role == TensorRole::activation) continue;
    tensor.instead = tensor.exists == keeps_var
                         ? "left out where base is instance_norm, and running_std with renorm=true "
                           "and variant=paper"
                     : tensor.exists == keeps_std ? "left out unless base is batch_norm, renorm=true and variant=paper"
                                                  : "left out where base is instance_norm";
    tensor.exists = tensor.exists == keeps_var   ? on_batch_keeps_var
                    : tensor.exists == keeps_std ? on_batch_keeps_std
                                                 : on_batch;
  }
  return all;
}();
constexpr OutputSpec map_outputs[] = {
    {"mean", each_channel, "that the layer normalized with", on_batch},
    {"var", each_channel, "that the layer normalized with: biased, without eps", on_batch},
    {"running_mean", each_channel, "after the call, in training"},
    {"running_var", each_channel, "after the call, in training"},
    {"running_std", each_channel, "in place of running_var when renorm=true and variant=paper"},
    {"num_batches_tracked", none, "after the call, in training"},
    {"r", each_channel, "with renorm", renormalizes},
    {"d", each_channel, "with renorm", renormalizes},
    {"mean", each_instance, "where base is instance_norm", on_instance},
    {"rstd", each_instance, "where base is instance_norm: 1 / sqrt(var + eps)", on_instance},
    {"grad_gamma", every_axis, ""},
    {"grad_beta", every_axis, ""},
    {"grad_residual", every_axis, ""},
};

constexpr TensorSpec layer_norm_tensors[] = {weight(each_column), bias(each_column), residual};
constexpr OutputSpec layer_norm_outputs[] = {
    {"mean", each_row, ""},         {"rstd", each_row, "1 / sqrt(var + eps)"}, {"grad_weight", each_column, ""},
    {"grad_bias", each_column, ""}, {"grad_residual", every_axis, ""},
};

constexpr TensorSpec rms_norm_tensors[] = {weight(each_column), residual};
constexpr OutputSpec rms_norm_outputs[] = {
    {"rstd", each_row, "1 / sqrt(mean of squares + eps)"},
    {"grad_weight", each_column, ""},
    {"grad_residual", every_axis, ""},
};

constexpr TensorSpec group_norm_tensors[] = {weight(each_channel), bias(each_channel), residual};
constexpr OutputSpec group_norm_outputs[] = {
    {"mean", each_group, ""},        {"rstd", each_group, "1 / sqrt(var + eps)"}, {"grad_weight", each_channel, ""},
    {"grad_bias", each_channel, ""}, {"grad_residual", every_axis, ""},
};

constexpr Attribute instance_norm_attributes[] = {
    eps_attribute,
    momentum_attribute,
    attributes::boolean<&O::track>("track", "running statistics are kept: averages over the samples"),
    training_attribute,
    activation_attribute,
    slope_attribute,
    sync_attribute,
    nonfinite_attribute,
};
constexpr bool tracks(const O& options) { return options.track; }
constexpr std::string_view tracked = "left out unless track=true";
constexpr TensorSpec instance_norm_tensors[] = {
    weight(each_channel),
    bias(each_channel),
    {"running_mean", TensorRole::state, each_channel, "with track=true; 0 when not given", 0, Bound::none, tracks,
     tracked},
    {"running_var", TensorRole::state, each_channel, "with track=true; 1 when not given", 1, Bound::not_negative,
     tracks, tracked},
    {"num_batches_tracked", TensorRole::counter, none, "with track=true: updates of the running statistics so far", 0,
     Bound::none, tracks, tracked},
    residual,
};
constexpr OutputSpec instance_norm_outputs[] = {
    {"mean", each_instance, ""},
    {"rstd", each_instance, "1 / sqrt(var + eps)"},
    {"running_mean", each_channel, "after the call, in training with track=true"},
    {"running_var", each_channel, "after the call, in training with track=true: unbiased"},
    {"num_batches_tracked", none, "after the call, in training with track=true"},
    {"grad_weight", each_channel, ""},
    {"grad_bias", each_channel, ""},
    {"grad_residual", every_axis, ""},
};

constexpr Attribute response_attributes[] = {
    attributes::real<0, &O::eps>("eps", "added to the mean square, so that nothing is divided by 0"),
    with(Agreement::none, attributes::choice<Words{"first", "second", "half"}, &O::tie>(
                              "tie", "who takes the gradient where y is tau: y, tau, or half of it each")),
    sync_attribute,
    nonfinite_attribute,
};
constexpr TensorSpec response_tensors[] = {
    weight(each_channel),
    bias(each_channel),
    {"tau", TensorRole::parameter, each_channel, "the output is the larger of y and tau; y when not given"},
    // At 0 its size has no slope, and it would stay there: the paper starts at 1e-4.
    starting_at(1e-4,
                {"eps_learned", TensorRole::parameter, each_channel, "its size is added to eps; 0 when not given"}),
};
constexpr OutputSpec response_outputs[] = {
    {"grad_weight", each_channel, ""},
    {"grad_bias", each_channel, ""},
    {"grad_tau", each_channel, ""},
    {"grad_eps_learned", each_channel, "0 where eps_learned is 0"},
};
constexpr Default response_defaults[] = {{"eps", "1e-6"}};

constexpr Attribute positional_attributes[] = {
    eps_attribute,
    attributes::boolean<&O::unbiased>("unbiased", "the variance has Bessel's factor; nan for one channel"),
    sync_attribute,
    nonfinite_attribute,
};
constexpr TensorSpec positional_tensors[] = {
    weight(each_place),
    bias(each_place),
    {"grad_mean", TensorRole::gradient, each_position, "that comes through mean; asks for the gradients too"},
    {"grad_std", TensorRole::gradient, each_position, "that comes through std; asks for the gradients too"},
};
constexpr OutputSpec positional_outputs[] = {
    {"mean", each_position, ""},
    {"std", each_position, "sqrt(var + eps)"},
    {"grad_weight", each_place, ""},
    {"grad_bias", each_place, ""},
};

constexpr TensorSpec shortcut_tensors[] = {
    {"gamma", TensorRole::map, each_position, "multiplies the input; 1 when not given", 1},
    {"beta", TensorRole::map, each_position, "is added; 0 when not given"},
};
constexpr OutputSpec shortcut_outputs[] = {{"grad_gamma", each_position, ""}, {"grad_beta", each_position, ""}};

constexpr Attribute switchable_attributes[] = {
    eps_attribute,
    momentum_attribute,
    training_attribute,
    attributes::boolean<&O::unbiased_instance_var>(
        "unbiased_instance_var", "the variances of instances, of which all are made, have Bessel's factor"),
    sync_attribute,
    attributes::choice<Words{"batch", "space"}, &O::shard>(
        "shard", "ranks hold samples of their own, or parts of the same samples"),
    nonfinite_attribute,
};
constexpr Axes each_statistic{Axis::statistic};
constexpr TensorSpec switchable_tensors[] = {
    weight(each_channel),
    bias(each_channel),
    {"mean_logits", TensorRole::parameter, each_statistic,
     "whose softmax weighs the means of instance, layer and batch; equal when not given", 1},
    {"var_logits", TensorRole::parameter, each_statistic, "the same for their variances", 1},
    {"running_mean", TensorRole::state, each_channel, "of the batch; 0 when not given"},
    {"running_var", TensorRole::state, each_channel, "of the batch, biased; 1 when not given", 1, Bound::not_negative},
};
constexpr OutputSpec switchable_outputs[] = {
    {"running_mean", each_channel, "after the call, in training"},
    {"running_var", each_channel, "after the call, in training"},
    {"grad_weight", each_channel, "of this rank's values"},
    {"grad_bias", each_channel, "of this rank's values"},
    {"grad_mean_logits", each_statistic, "of this rank's values"},
    {"grad_var_logits", each_statistic, "of this rank's values"},
};
/// Samples that are cut have no layer norm and no instance norm of their own.
constexpr Axes whole_for_switching(const O& options) {
  return options.shard == Shard::space ? each_instance : Axes{Axis::channel, Axis::space};
}

constexpr Attribute standardization_attributes[] = {
    attributes::boolean<&O::unbiased>("unbiased", "the variance has Bessel's factor; nan for rows of one value"),
    eps_attribute,
    eps_place_attribute,
};
constexpr TensorSpec standardization_tensors[] = {
    {"gain", TensorRole::parameter, each_weight_row, "multiplies the rows; 1 when not given", 1}};
constexpr OutputSpec standardization_outputs[] = {{"grad_gain", each_weight_row, ""}};

constexpr Attribute weight_norm_attributes[] = {
    attributes::integer<-1, &O::dim>("dim", "the axis of v whose indices are the rows; negative: from the end"),
};
constexpr TensorSpec weight_norm_tensors[] = {
    {"g", TensorRole::parameter, each_weight_row,
     "the rows' lengths in w, or like v with 1 in place of the other axes; those of v when not given"}};
constexpr OutputSpec weight_norm_outputs[] = {{"grad_g", each_weight_row, "like g"}};

constexpr Attribute neighbours_attributes[] = {
    attributes::integer<1, &O::size>("size", "channels of a window, n"),
    attributes::real<0, &O::alpha>("alpha",
                                   "multiplies the squares of the window: their sum over n, with alexnet their sum"),
    attributes::real<0, &O::beta>("beta", "values are divided by (k + alpha * squares)^beta"),
    attributes::real<0, &O::k>("k", "added to the squares; with 0 a window of zeros gives nan"),
    attributes::choice<Words{"pytorch", "onnx", "caffe", "alexnet"}, &O::convention>(
        "convention",
        "pytorch: n/2 channels behind and (n-1)/2 ahead; onnx: the reverse; caffe: odd n; alexnet: n/2 on both sides, "
        "and alpha is of the sum of squares"),
};
constexpr Default neighbours_defaults[] = {{"alpha", "1e-4"}};
void check_window(const O& options) {
  expect(options.convention != WindowConvention::caffe || options.size % 2 == 1, Code::invalid_argument, [&] {
    return "attribute size is " + std::to_string(options.size) + ", must be odd where convention is caffe";
  });
}

constexpr Attribute cosine_attributes[] = {
    attributes::boolean<&O::centred>("centred", "vectors lose their means first: the output is a correlation"),
    attributes::real<0, &O::eps>("eps", "keeps a vector of zeros from being divided by 0, which gives nan"),
    attributes::choice<Words{"add", "max", "sq"}, &O::eps_mode>(
        "eps_mode", "vectors are divided by |x| + eps, max(|x|, eps) or sqrt(|x|^2 + eps)"),
};
constexpr Default cosine_defaults[] = {{"eps", "0"}};
constexpr TensorSpec cosine_tensors[] = {{"weight", TensorRole::vectors, none,
                                          "whose rows the input's (N,K) are compared with", 0, Bound::none, nullptr, "",
                                          always, with_input}};
constexpr OutputSpec cosine_outputs[] = {{"grad_weight", none, "of this rank's rows"}};

constexpr Attribute mean_only_attributes[] = {momentum_attribute, training_attribute, sync_attribute,
                                              nonfinite_attribute};
constexpr TensorSpec mean_only_tensors[] = {bias(each_channel),
                                            {"running_mean", TensorRole::state, each_channel, "0 when not given"}};
constexpr OutputSpec mean_only_outputs[] = {
    {"mean", each_channel, "that the layer centred with"},
    {"running_mean", each_channel, "after the call, in training"},
    {"grad_bias", each_channel, "of this rank's values"},
};

constexpr Attribute group_size_attribute =
    attributes::integer<1, &O::group_size>("group_size", "channels that are whitened together; a divisor of C");
constexpr Attribute decorrelated_attributes[] = {
    group_size_attribute, eps_attribute, momentum_attribute, training_attribute, sync_attribute, nonfinite_attribute,
};
constexpr Attribute iterative_attributes[] = {
    group_size_attribute,
    attributes::integer<1, &O::iterations>("iterations", "of Newton's method towards the inverse root"),
    eps_attribute,
    momentum_attribute,
    training_attribute,
    sync_attribute,
    nonfinite_attribute,
};
void check_iterations(const O& options) {
  constexpr std::int64_t most = 1000;  // it has converged long before
  expect(options.iterations <= most, Code::invalid_argument, [&] {
    return "attribute iterations is " + std::to_string(options.iterations) + ", must be at most " +
           std::to_string(most);
  });
}
constexpr Axes each_pair{Axis::channel, Axis::partner};
constexpr TensorSpec whitening_tensors[] = {
    {"running_mean", TensorRole::state, each_channel, "0 when not given"},
    {"running_whitening", TensorRole::state, each_pair, "what x - mean is multiplied by; identity when not given"},
};
constexpr OutputSpec whitening_outputs[] = {
    {"running_mean", each_channel, "after the call, in training"},
    {"running_whitening", each_pair, "after the call, in training"},
};

// ---- the table -----------------------------------------------------------------------------------------------------

constexpr Default sync_defaults[] = {{"sync", "world"}};
constexpr Default renorm_defaults[] = {{"renorm", "true"}, {"eps", "1e-3"}, {"momentum", "0.01"}};
constexpr Default window_defaults[] = {{"window", "4"}};
constexpr Default minibatch_defaults[] = {{"minibatches", "4"}};

constexpr Row rows[] = {
    {"batch_norm",
     "Batch Normalization: mean and variance of each channel over batch and space",
     "Ioffe and Szegedy 2015, arXiv:1502.03167",
     each_channel,
     batch_tensors,
     batch_attributes,
     {},
     batch_outputs},
    {"sync_batch_norm", "Cross-GPU BN: batch_norm with the statistics of all ranks",
     "Peng et al. 2018 (MegDet), arXiv:1711.07240", each_channel, batch_tensors, batch_attributes, sync_defaults,
     batch_outputs},
    {"batch_renorm", "Batch Renormalization: batch_norm corrected towards the running statistics",
     "Ioffe 2017, arXiv:1702.03275", each_channel, batch_tensors, batch_attributes, renorm_defaults, batch_outputs},
    {"cross_iteration_batch_norm",
     "Cross-Iteration BN: statistics of the last iterations, moved to the present weights",
     "Yao et al. 2021, arXiv:2002.05712", each_channel, batch_tensors, batch_attributes, window_defaults,
     batch_outputs},
    {"cross_mini_batch_norm", "CmBN: statistics accumulated over the mini-batches of one batch",
     "Bochkovskiy et al. 2020 (YOLOv4), arXiv:2004.10934", each_channel, batch_tensors, batch_attributes,
     minibatch_defaults, batch_outputs},
    {"layer_norm",
     "Layer Normalization: mean and variance of each sample over the trailing axes",
     "Ba et al. 2016, arXiv:1607.06450",
     each_row,
     layer_norm_tensors,
     layer_norm_attributes,
     {},
     layer_norm_outputs},
    {"rms_norm",
     "RMS Normalization: layer_norm with the root mean square, and nothing centred",
     "Zhang and Sennrich 2019, arXiv:1910.07467",
     each_row,
     rms_norm_tensors,
     layer_norm_attributes,
     {},
     rms_norm_outputs,
     false},
    {"group_norm",
     "Group Normalization: mean and variance of each sample and group of channels",
     "Wu and He 2018, arXiv:1803.08494",
     each_group,
     group_norm_tensors,
     group_norm_attributes,
     {},
     group_norm_outputs},
    {"instance_norm",
     "Instance Normalization: mean and variance of each sample and channel over space",
     "Ulyanov et al. 2016, arXiv:1607.08022",
     each_instance,
     instance_norm_tensors,
     instance_norm_attributes,
     {},
     instance_norm_outputs},
    {"filter_response_norm",
     "Filter Response Normalization with thresholds: mean square of each sample and channel over space",
     "Singh and Krishnan 2019, arXiv:1911.09737", each_instance, response_tensors, response_attributes,
     response_defaults, response_outputs, false},
    {"positional_norm",
     "Positional Normalization: mean and variance of each sample and position over channels",
     "Li et al. 2019, arXiv:1907.04312",
     each_position,
     positional_tensors,
     positional_attributes,
     {},
     positional_outputs},
    {"moment_shortcut",
     "Moment Shortcut: each position's moments, of another layer, given back",
     "Li et al. 2019, arXiv:1907.04312",
     each_position,
     shortcut_tensors,
     {},
     {},
     shortcut_outputs,
     false,
     OperationKind::norm,
     nullptr,
     nullptr,
     {},
     false},
    {"switchable_norm",
     "Switchable Normalization: mixtures of the means and variances of instance, layer and batch norm",
     "Luo et al. 2019, arXiv:1806.10779",
     each_channel,
     switchable_tensors,
     switchable_attributes,
     {},
     switchable_outputs,
     true,
     OperationKind::switchable,
     nullptr,
     whole_for_switching,
     "shard"},
    {"conditional_batch_norm",
     "Conditional BN: batch_norm whose gamma and beta are each sample's own, by its label or as it is told",
     "de Vries et al. 2017, arXiv:1707.00683; by labels Dumoulin et al. 2017, arXiv:1610.07629",
     each_channel,
     conditional_batch_tensors,
     batch_attributes,
     {},
     conditional_batch_outputs,
     true,
     OperationKind::conditional},
    {"conditional_instance_norm",
     "Conditional IN: instance_norm whose gamma and beta are those of each sample's style, or a mixture of styles",
     "Dumoulin et al. 2017, arXiv:1610.07629",
     each_instance,
     conditional_instance_tensors,
     conditional_instance_attributes,
     {},
     conditional_instance_outputs,
     true,
     OperationKind::conditional},
    {"adaptive_instance_norm",
     "AdaIN: every channel of a sample takes mean and deviation of that of a style",
     "Huang and Belongie 2017, arXiv:1703.06868",
     each_instance,
     adaptive_tensors,
     adaptive_attributes,
     {},
     adaptive_outputs,
     true,
     OperationKind::adaptive},
    {"spade",
     "SPADE: a norm whose gamma and beta are maps, one value of each for every value",
     "Park et al. 2019, arXiv:1903.07291",
     each_channel,
     map_tensors,
     map_attributes,
     {},
     map_outputs,
     true,
     OperationKind::maps,
     check_base,
     statistics_of_base,
     "base"},
    {"local_response_norm",
     "Local Response Normalization: values by the squares of the channels around",
     "Krizhevsky et al. 2012 (AlexNet)",
     each_value,
     {},
     neighbours_attributes,
     neighbours_defaults,
     {},
     false,
     OperationKind::neighbours,
     check_window},
    {"weight_standardization",
     "Weight Standardization: mean and variance of each row of a weight (O,...)",
     "Qiao et al. 2019, arXiv:1903.10520",
     each_weight_row,
     standardization_tensors,
     standardization_attributes,
     {},
     standardization_outputs},
    {"weight_norm",
     "Weight Normalization: the direction of each row of a weight v, with a length of its own",
     "Salimans and Kingma 2016, arXiv:1602.07868",
     each_weight_row,
     weight_norm_tensors,
     weight_norm_attributes,
     {},
     weight_norm_outputs,
     false,
     OperationKind::weight},
    {"cosine_norm", "Cosine Normalization: the cosines of the angles between rows (N,K) and vectors (M,K)",
     "Luo et al. 2017, arXiv:1702.05870", each_weight_row, cosine_tensors, cosine_attributes, cosine_defaults,
     cosine_outputs, false, OperationKind::cosine},
    {"mean_only_batch_norm",
     "Mean-only Batch Normalization: the mean of each channel over batch and space is taken away",
     "Salimans and Kingma 2016, arXiv:1602.07868",
     each_channel,
     mean_only_tensors,
     mean_only_attributes,
     {},
     mean_only_outputs,
     true,
     OperationKind::norm,
     nullptr,
     nullptr,
     {},
     false},
    {"decorrelated_batch_norm",
     "Decorrelated Batch Normalization: groups of channels whitened by the inverse root of their covariance (ZCA)",
     "Huang et al. 2018, arXiv:1804.08450",
     each_pair,
     whitening_tensors,
     decorrelated_attributes,
     {},
     whitening_outputs,
     true,
     OperationKind::whitening},
    {"iterative_norm",
     "Iterative Normalization: groups of channels whitened by some steps of Newton's method",
     "Huang et al. 2019, arXiv:1904.03441",
     each_pair,
     whitening_tensors,
     iterative_attributes,
     {},
     whitening_outputs,
     true,
     OperationKind::whitening,
     check_iterations},
};

static_assert(std::all_of(std::begin(rows), std::end(rows), attributes::fits_a_header));

}  // namespace

std::span<const Row> catalogue() noexcept { return rows; }

}  // namespace allnorm
