// A layer with the tensors of its steps, forward and backward, in memory that host and device share.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "allnorm/norm.hpp"
#include "backend.hpp"
#include "cases.hpp"
#include "harness.hpp"

#if ALLNORM_CUDA_EMULATED
#include "cuda_emulation.hpp"
#endif

namespace step_test {

using namespace allnorm;
using cases::Random;

constexpr std::int64_t C = 5;
inline const Shape x_shape{3, C, 4, 6}, conv_shape{3, 2, 4, 6}, weight_shape{C, 2, 1, 1}, parameter_shape{C};

inline backend::Array<float> draw(Random& random, const Shape& shape, double mean = 0, double std = 1) {
  backend::Array<float> made(static_cast<std::size_t>(shape.elements()));
  for (float& v : made) v = static_cast<float>(mean + std * random.normal());
  return made;
}

/// A layer and the tensors of its steps, in memory that host and device share.
struct Step {
  explicit Step(const Layer& layer, Queue& q, std::shared_ptr<Communicator> group = nullptr)
      : queue(q), norm(layer, C, std::move(group), q) {}

  void run() {
    forward();
    backward();
  }
  void forward() {
    ForwardInputs in;
    in.input = backend::view(x.data(), x_shape);
    in.weight = backend::view(gamma.data(), parameter_shape);
    in.bias = backend::view(beta.data(), parameter_shape);
    if (has_residual()) in.residual = backend::view(residual.data(), x_shape);
    if (norm.layer().options.window > 1) {
      in.conv_input = backend::view(conv_input.data(), conv_shape);
      in.conv_weight = backend::view(theta.data(), weight_shape);
    }
    saved = norm.forward(in, backend::view(y.data(), x_shape), queue);
  }
  void backward() {
    BackwardOutputs out;
    out.input = backend::view(dx.data(), x_shape);
    if (has_residual()) out.residual = backend::view(dresidual.data(), x_shape);
    out.weight = backend::view(dgamma.data(), parameter_shape);
    out.bias = backend::view(dbeta.data(), parameter_shape);
    norm.backward(saved, backend::view(dy.data(), x_shape), out, queue);
  }
  bool has_residual() const { return norm.layer().options.activation.kind != ActivationKind::identity; }
  /// New data in the same memory.
  void refill(std::uint64_t seed, bool new_weights) {
    Random fresh(seed);
    const auto into = [&fresh](backend::Array<float>& to, double mean) {
      for (float& v : to) v = static_cast<float>(mean + fresh.normal());
    };
    into(x, 0.5);
    into(conv_input, 0.2);
    into(dy, 0);
    into(residual, 0);
    if (new_weights) into(theta, 0);
  }
  /// Everything that a step leaves.
  std::vector<std::vector<std::byte>> outcome() {
    queue.wait();
    std::vector<std::vector<std::byte>> all;
    const auto add = [&all](const auto& array) {
      const auto* from = reinterpret_cast<const std::byte*>(array.data());
      all.emplace_back(from, from + array.size() * sizeof(array[0]));
    };
    for (const auto* array : {&y, &dx, &dgamma, &dbeta, &dresidual}) add(*array);
    for (const StateEntry& entry : norm.save(queue).entries) add(entry.data);
    return all;
  }

  Queue& queue;
  Norm norm;
  Random random{3};
  backend::Array<float> x = draw(random, x_shape), dy = draw(random, x_shape), residual = draw(random, x_shape),
                        conv_input = draw(random, conv_shape), theta = draw(random, weight_shape),
                        gamma = draw(random, parameter_shape, 1, 0.2), beta = draw(random, parameter_shape),
                        y = draw(random, x_shape), dx = draw(random, x_shape), dresidual = draw(random, x_shape),
                        dgamma = draw(random, parameter_shape), dbeta = draw(random, parameter_shape);
  Saved saved;
};

/// A layer with every kind of state at once.
inline Layer every_state() {
  Layer layer = parse_layer(
      "cross_iteration_batch_norm:minibatches=2:window=3:renorm=true:burn_in=1:momentum=cumulative:activation=relu");
  layer.options.r_max_ramp = {{1, 1.0}, {4, 2.0}};
  layer.options.d_max_ramp = {{0, 0.0}, {5, 1.0}};
  return layer;
}

}  // namespace step_test
