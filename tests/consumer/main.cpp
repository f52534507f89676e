// Cross-GPU BN on two ranks, here threads of this process: each has one value of one channel, both normalize with the
// mean and variance of the two.
#include <allnorm/norm.hpp>
#include <cstdio>
#include <thread>
#include <vector>

int main() {
  const auto ranks = allnorm::threads(2);
  const auto train = [&ranks](std::size_t rank) {
    allnorm::Queue queue = allnorm::Queue::cpu();
    allnorm::Norm norm(allnorm::Layer("batch_norm"), 1, ranks[rank], queue);
    float x = rank == 0 ? 1.0f : 4.0f, y = 0.0f;  // (N, C) = (1, 1)
    const allnorm::Saved saved = norm.forward({.input = allnorm::view(&x, {1, 1})}, allnorm::view(&y, {1, 1}), queue);
    std::printf("rank %zu: mean %g, variance %g, y %.3f\n", rank, saved.frame().mean[0], saved.frame().var[0],
                double{y});
  };
  std::thread other(train, 1);
  train(0);
  other.join();
}
