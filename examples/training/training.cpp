// A training loop of one layer over MPI, data-parallel: every rank has two samples of its own, the layer normalizes
// them with the statistics of all ranks, and its gamma and beta learn to make 3 x_hat - 1 of them.
//
// The layer exchanges its own statistics. The gradients of the parameters are the caller's to average, as those of any
// other layer.
#include <allnorm/mpi.hpp>
#include <allnorm/norm.hpp>
#include <array>
#include <cmath>
#include <cstdio>
#include <exception>

namespace {

constexpr int samples = 2, steps = 60;
constexpr float rate = 0.25f;

// The mean of `values` over all ranks, on each of them.
template <std::size_t Size>
void average(std::array<float, Size>& values, int ranks) {
  MPI_Allreduce(MPI_IN_PLACE, values.data(), static_cast<int>(Size), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
  for (float& value : values) value /= static_cast<float>(ranks);
}

void train(int rank, int ranks) {
  allnorm::Queue queue = allnorm::Queue::cpu();
  allnorm::Layer options("sync_batch_norm");
  options.set("eps", "0");
  allnorm::Norm norm(options, 1, allnorm::mpi(MPI_COMM_WORLD), queue);

  // (N, C) = (2, 1): 0 and 1 on rank 0, 10 and 11 on rank 1. By itself no rank knows where its samples lie among all.
  std::array<float, samples> x{10.0f * static_cast<float>(rank), 10.0f * static_cast<float>(rank) + 1}, y{}, dy{};
  std::array<float, 2> parameters{1, 0}, gradients{};  // gamma, beta
  const auto view = [](auto& values) { return allnorm::view(values.data(), {samples, 1}); };
  for (int step = 0; step < steps; ++step) {
    const auto gamma = allnorm::view(&parameters[0], {1}), beta = allnorm::view(&parameters[1], {1});
    const allnorm::Saved saved = norm.forward({.input = view(x), .weight = gamma, .bias = beta}, view(y), queue);
    const double mean = saved.frame().mean[0], rstd = saved.frame().rstd[0];
    std::array<float, 1> loss{};
    for (int i = 0; i < samples; ++i) {
      const auto target = static_cast<float>(3 * (x[i] - mean) * rstd - 1);
      loss[0] += (y[i] - target) * (y[i] - target) / samples;
      dy[i] = 2 * (y[i] - target) / samples;
    }
    norm.backward(saved, view(dy),
                  {.weight = allnorm::view(&gradients[0], {1}), .bias = allnorm::view(&gradients[1], {1})}, queue);
    average(gradients, ranks);
    average(loss, ranks);
    for (std::size_t p = 0; p < parameters.size(); ++p) parameters[p] -= rate * gradients[p];
    if (rank == 0 && (step == 0 || step + 1 == steps))
      std::printf("%d ranks, mean %.1f, step %d: loss %.4f, gamma %.3f, beta %.3f\n", ranks, mean, step + 1,
                  double{loss[0]}, double{parameters[0]}, double{parameters[1]});
  }
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0, ranks = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  try {
    train(rank, ranks);
  } catch (const std::exception& error) {  // another rank's as well: all are told, and none waits for ever
    std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
}
