// What one call of a layer costs on one thread of the CPU: forward and backward of a Norm, median over calls on fresh
// inputs of the same size. Uses nothing but the public headers: built from two trees, bench/compare_layers runs the two
// in turn. Prints forward and backward in µs.
// usage: bench_layers LAYER SHAPE [f32|bf16|f16|f64] [channels_first|channels_last] [SECONDS]
//        bench_layers layer_norm 8192,1024 bf16
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "allnorm/norm.hpp"

namespace {

using namespace allnorm;
using Clock = std::chrono::steady_clock;

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

std::vector<std::int64_t> extents_of(const std::string& text) {
  std::vector<std::int64_t> made;
  std::istringstream in(text);
  for (std::string extent; std::getline(in, extent, ',');) made.push_back(std::atoll(extent.c_str()));
  return made;
}

template <class T>
void measure(const Layer& layer, const Shape& shape, Order order, double seconds) {
  const auto size = static_cast<std::size_t>(shape.elements());
  std::mt19937_64 engine(1);
  std::normal_distribution<float> normal;
  std::vector<T> x(size), dy(size), y(size), dx(size);
  for (T& v : x) v = store<T>(static_cast<compute_t<T>>(normal(engine)));
  for (T& v : dy) v = store<T>(static_cast<compute_t<T>>(normal(engine)));
  Queue queue = Queue::cpu();
  Norm norm(layer, shape[1], self(), queue);
  const TensorSpec* spec = layer.row->tensor("weight");
  const Shape parameters = layer.shape_of(spec != nullptr ? spec->axes : Axes{}, shape);
  const auto count = static_cast<std::size_t>(parameters.elements());
  std::vector<float> weight(count, 1.5f), bias(count, 0.5f), dweight(count), dbias(count);
  const bool has_bias = layer.row->tensor("bias") != nullptr;
  ForwardInputs in;
  in.input = view(x.data(), shape, order);
  in.weight = view(weight.data(), parameters);
  if (has_bias) in.bias = view(bias.data(), parameters);
  BackwardOutputs out;
  out.input = view(dx.data(), shape, order);
  out.weight = view(dweight.data(), parameters);
  if (has_bias) out.bias = view(dbias.data(), parameters);
  std::vector<float> tau(count, 0.25f), eps(count, 1e-4f), dtau(count), deps(count);
  if (layer.row->tensor("tau") != nullptr) {
    in.tau = view(tau.data(), parameters);
    in.eps_learned = view(eps.data(), parameters);
    out.tau = view(dtau.data(), parameters);
    out.eps_learned = view(deps.data(), parameters);
  }
  std::vector<double> forward, backward;
  const auto microseconds = [](Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double, std::micro>(to - from).count();
  };
  const auto begin = Clock::now();
  while (forward.size() < 5 || std::chrono::duration<double>(Clock::now() - begin).count() < seconds) {
    const auto before = Clock::now();
    const Saved saved = norm.forward(in, view(y.data(), shape, order), queue);
    const auto between = Clock::now();
    norm.backward(saved, view(dy.data(), shape, order), out, queue);
    const auto after = Clock::now();
    forward.push_back(microseconds(before, between));
    backward.push_back(microseconds(between, after));
  }
  std::printf("%.3f %.3f\n", median(forward), median(backward));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 3) {
      std::fprintf(stderr,
                   "usage: bench_layers LAYER SHAPE [f32|bf16|f16|f64] [channels_first|channels_last] [SECONDS]\n");
      return 2;
    }
    const Layer layer = parse_layer(argv[1]);
    const std::vector<std::int64_t> extents = extents_of(argv[2]);
    const Shape shape(extents);
    const std::string dtype = argc > 3 ? argv[3] : "f32", order_name = argc > 4 ? argv[4] : "channels_first";
    const Order order = order_name == "channels_last" ? Order::channels_last : Order::channels_first;
    const double seconds = argc > 5 ? std::atof(argv[5]) : 0.2;
    if (dtype == "f64")
      measure<double>(layer, shape, order, seconds);
    else if (dtype == "bf16")
      measure<bf16>(layer, shape, order, seconds);
    else if (dtype == "f16")
      measure<f16>(layer, shape, order, seconds);
    else
      measure<float>(layer, shape, order, seconds);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_layers: %s\n", error.what());
    return 1;
  }
}
