// oneDNN as a side of bench/cpu_vs_peers. In a program of its own: libtorch may bring another version of it.
#include <omp.h>

#include <dnnl.hpp>
#include <memory>
#include <random>

#include "bench/peer.hpp"

namespace {

using namespace allnorm::bench;
using dnnl::memory;
using dnnl::normalization_flags;
using Arguments = std::unordered_map<int, memory>;
constexpr float eps = 1e-5f;

memory::data_type type_of(const std::string& dtype) {
  if (dtype == "bf16") return memory::data_type::bf16;
  return dtype == "f16" ? memory::data_type::f16 : memory::data_type::f32;
}

memory::format_tag format_of(const Case& c) {
  if (c.shape.size() == 2) return memory::format_tag::ab;
  return c.channels_last ? memory::format_tag::acdb : memory::format_tag::abcd;
}

/// A layer's memory, filled with normal numbers in f32 and converted, and its calls.
class Layer {
 public:
  explicit Layer(const Case& c) : case_(c), like_x_(c.shape, type_of(c.dtype), format_of(c)) {
    for (const int argument : {DNNL_ARG_SRC, DNNL_ARG_DIFF_DST}) fill(tensors_[argument] = memory(like_x_, engine_));
    for (const int argument : {DNNL_ARG_DST, DNNL_ARG_DIFF_SRC}) tensors_[argument] = memory(like_x_, engine_);
    const std::int64_t parameters = c.shape[1];
    const memory::desc vector({parameters}, memory::data_type::f32, memory::format_tag::a);
    for (const int argument : {DNNL_ARG_SCALE, DNNL_ARG_SHIFT, DNNL_ARG_DIFF_SCALE, DNNL_ARG_DIFF_SHIFT}) {
      tensors_[argument] = memory(vector, engine_);
      std::fill_n(static_cast<float*>(tensors_[argument].get_data_handle()), parameters, 1.5f);
    }
  }

  Calls calls() {
    const auto flags = normalization_flags::use_scale | normalization_flags::use_shift;
    const auto forward = dnnl::prop_kind::forward_training, backward = dnnl::prop_kind::backward;
    if (case_.layer == "batch_norm") {
      const dnnl::batch_normalization_forward::primitive_desc f(engine_, forward, like_x_, like_x_, eps, flags);
      return calls_of<dnnl::batch_normalization_forward, dnnl::batch_normalization_backward>(
          f, {engine_, backward, like_x_, like_x_, like_x_, eps, flags, f});
    }
    if (case_.layer == "layer_norm") {
      const dnnl::layer_normalization_forward::primitive_desc f(engine_, forward, like_x_, like_x_, eps, flags);
      return calls_of<dnnl::layer_normalization_forward, dnnl::layer_normalization_backward>(
          f, {engine_, backward, like_x_, like_x_, like_x_, eps, flags, f});
    }
    return {};  // group_norm: from version 3.3 on
  }

 private:
  template <class Forward, class Backward>
  Calls calls_of(const typename Forward::primitive_desc& f, const typename Backward::primitive_desc& b) {
    tensors_[DNNL_ARG_MEAN] = memory(f.mean_desc(), engine_);
    tensors_[DNNL_ARG_VARIANCE] = memory(f.variance_desc(), engine_);
    const auto call = [this](auto primitive, const std::vector<int>& takes) {
      Arguments arguments;
      for (const int argument : takes) arguments[argument] = tensors_.at(argument);
      return [this, primitive, arguments] {
        primitive.execute(stream_, arguments);
        stream_.wait();
      };
    };
    std::vector<int> of_backward{DNNL_ARG_SRC,      DNNL_ARG_DIFF_DST, DNNL_ARG_DIFF_SRC,   DNNL_ARG_MEAN,
                                 DNNL_ARG_VARIANCE, DNNL_ARG_SCALE,    DNNL_ARG_DIFF_SCALE, DNNL_ARG_DIFF_SHIFT};
    if (case_.layer == "layer_norm")
      of_backward.push_back(DNNL_ARG_SHIFT);  // without it, it fails; with it batch_norm does
    return {{"onednn forward", call(Forward(f), {DNNL_ARG_SRC, DNNL_ARG_DST, DNNL_ARG_MEAN, DNNL_ARG_VARIANCE,
                                                 DNNL_ARG_SCALE, DNNL_ARG_SHIFT})},
            {"onednn backward", call(Backward(b), of_backward)}};
  }
  void fill(memory& to) {
    const memory::desc plain(case_.shape, memory::data_type::f32, format_of(case_));
    memory from(plain, engine_);
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    std::generate_n(static_cast<float*>(from.get_data_handle()), case_.elements(), [&] { return normal(random); });
    dnnl::reorder(from, to).execute(stream_, from, to);
    stream_.wait();
  }

  Case case_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  memory::desc like_x_;
  Arguments tensors_;  // of both passes
};

}  // namespace

int main() {
  const dnnl_version_t& v = *dnnl_version();
  std::shared_ptr<Layer> layer;
  return serve("oneDNN " + std::to_string(v.major) + '.' + std::to_string(v.minor), [&](const Case& c) -> Calls {
    omp_set_num_threads(c.threads);
    try {
      layer = std::make_shared<Layer>(c);
      return layer->calls();
    } catch (const dnnl::error&) {  // of a layer or type that it has not here
      return {};
    }
  });
}
