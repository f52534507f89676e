// Batch Normalization with ReLU, forward and backward, on one rank; the README's example.
#include <allnorm/norm.hpp>
#include <cstdio>
#include <vector>

int main() {
  using namespace allnorm;
  Queue queue = Queue::cpu();
  const Shape shape{2, 3, 4, 4};  // (N, C, H, W)
  std::vector<float> x(96), y(96), dy(96, 1.0f), dx(96);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 7);

  Norm norm(Layer("batch_norm").set("activation", "relu"), 3, self(), queue);
  ForwardInputs in;
  in.input = view(x.data(), shape);
  const Saved saved = norm.forward(in, view(y.data(), shape), queue);
  BackwardOutputs out;
  out.input = view(dx.data(), shape);
  norm.backward(saved, view(dy.data(), shape), out, queue);
  std::printf("channel 0: mean %.4f, var %.4f, y[0] %.4f\n", saved.frame().mean[0], saved.frame().var[0], y[0]);
}
