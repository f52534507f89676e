// Backward of a norm over rows for a lone rank, all of it in one pass over x and dy: teams of threads walk down the
// rows, each thread with columns of its own, so that gamma and the sums of dgamma and dbeta stay with it.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/coefficients.cuh"
#include "kernels/cuda/halves.hpp"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/team.cuh"
#include "kernels/cuda/vectors.cuh"
#include "src/runtime/cuda/queue.hpp"

namespace allnorm::cuda {
namespace {

constexpr int most_threads = 512;  // of a block
constexpr int most_vectors = 2;    // of a row, per thread
constexpr int rows_per_sum = 16;   // added in the compute type

/// A row's share of one thread.
template <class T, int vectors>
struct RowValues {
  static constexpr int width = vector_width<T>;
  Vector<T, width> x[vectors] = {}, dy[vectors] = {};

  __device__ void read(const BackwardArgs& args, std::int64_t row, std::int64_t columns, const TeamShape& team) {
    for (int k = 0; k < vectors; ++k) {
      const std::int64_t j = static_cast<std::int64_t>(k * team.threads + team.lane()) * width;
      if (j >= columns) continue;
      x[k] = read_vector<width>(static_cast<const T*>(args.x) + row * columns + j, Hint::last);
      dy[k] = read_vector<width>(static_cast<const T*>(args.dy) + row * columns + j, Hint::last);
    }
  }
};

/// sums: (2, blocks, columns). Team t of all takes the rows t, t + teams, ... Shared memory: (teams, 2, columns).
template <class T, int vectors>
__global__ void __launch_bounds__(most_threads)
    rows_grad_kernel(const __grid_constant__ BackwardArgs args, const TeamShape team, double* sums) {
  using C = compute_t<T>;
  constexpr int width = vector_width<T>;
  const std::int64_t rows = args.norm.groups(), columns = args.norm.group_size();
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * team.teams;
  auto* shared = dynamic_shared<double>();
  double* kept = shared + static_cast<int>(threadIdx.x) / team.threads * 2 * columns;
  const auto column = [&](int k) { return static_cast<std::int64_t>(k * team.threads + team.lane()) * width; };

  typename AlongGammas<true>::Values<C, width> own[vectors];
  C of_weight[vectors][width] = {}, of_bias[vectors][width] = {};
  for (int k = 0; k < vectors; ++k)
    if (column(k) < columns) {
      load_parameter(args.weight, column(k), own[k].weight);
      for (int e = 0; e < width; ++e) kept[column(k) + e] = kept[columns + column(k) + e] = 0;
    }
  const auto flush = [&] {
    for (int k = 0; k < vectors; ++k)
      if (column(k) < columns)
        for (int e = 0; e < width; ++e) {
          kept[column(k) + e] += static_cast<double>(of_weight[k][e]);
          kept[columns + column(k) + e] += static_cast<double>(of_bias[k][e]);
          of_weight[k][e] = of_bias[k][e] = 0;
        }
  };

  const double count = args.frame.scalars->count;
  RowValues<T, vectors> next;
  std::int64_t row = team.place();
  if (row < rows) next.read(args, row, columns, team);
  int added = 0;
  // all teams of a block make the same number of rounds
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * team.teams; first < rows;
       first += step, row += step) {
    const RowValues<T, vectors> now = next;
    if (row + step < rows) next.read(args, row + step, columns, team);  // under way during the sums
    steps::GroupFrame frame;
    if (row < rows) frame = args.frame.get(row);
    const auto normal = affine<C>(frame.mean, frame.rstd, 0);  // without a correction
    Sums sum;
    for (int k = 0; k < vectors; ++k) {
      if (column(k) >= columns || row >= rows) continue;
      C value[width], gradient[width];
      TwoSums<C> of_vector;
      unpack(now.x[k], value);
      unpack(now.dy[k], gradient);
      for (int e = 0; e < width; ++e) {
        const C centred = centred_of(value[e], normal.center, normal.power);
        of_vector.add(own[k].own(e).weighted(gradient[e]), centred);
        add_gradient(gradient[e], affine_of(centred, normal.scale, normal.shift), of_bias[k][e], of_weight[k][e]);
      }
      sum.add(of_vector);
    }
    if (++added % rows_per_sum == 0) flush();
    sum = about_frame(team_sum(sum, team), normal.center, normal.power, frame.mean);
    if (row >= rows || args.dx == nullptr) continue;
    const auto map = grad_frame<C, true>(args, args.frame.get(row), row, count, sum.sum, sum.second);
    for (int k = 0; k < vectors; ++k) {
      if (column(k) >= columns) continue;
      C value[width], gradient[width];
      unpack(now.x[k], value);
      unpack(now.dy[k], gradient);
      for (int e = 0; e < width; ++e) value[e] = dx_of(value[e], gradient[e], map, own[k].own(e));
      write_vector(static_cast<T*>(args.dx) + row * columns + column(k), pack<T>(value));
    }
  }
  flush();
  __syncthreads();
  for (std::int64_t i = threadIdx.x; i < 2 * columns; i += blockDim.x) {
    double total = 0;
    for (int t = 0; t < team.teams; ++t) total += shared[t * 2 * columns + i];
    sums[(i / columns * gridDim.x + blockIdx.x) * columns + i % columns] = total;
  }
}

/// The fewest threads whose vectors cover a row; several teams to a block where they are few.
template <class T>
TeamShape team_of(std::int64_t columns) {
  TeamShape team;
  while (team.threads * vector_width<T> * most_vectors < columns) team.threads *= 2;
  constexpr std::int64_t room = 32 << 10;  // of shared memory: two blocks or more to a multiprocessor
  const std::int64_t teams = room / (2 * static_cast<std::int64_t>(sizeof(double)) * columns);
  team.teams = static_cast<int>(std::clamp<std::int64_t>(teams, 1, most_threads / 2 / team.threads));
  return team;
}

template <class T, int vectors>
void rows_grad_of(const BackwardArgs& args, const TeamShape& team, Queue& queue) {
  const std::int64_t rows = args.norm.groups(), columns = args.norm.group_size();
  // few rows to a team, and its sums would weigh more than what it reads
  const std::int64_t rows_of_block = std::int64_t{team.teams} * rows_per_sum;
  const std::int64_t most = 2 * properties_of(queue).multiProcessorCount;
  const std::int64_t blocks = std::min(most, (rows + rows_of_block - 1) / rows_of_block);
  Buffer<double> sums(static_cast<std::size_t>(2 * blocks * columns), queue, Fill::none);
  launch(queue, blocks, team.block_threads(), static_cast<std::size_t>(team.teams * 2 * columns) * sizeof(double),
         rows_grad_kernel<T, vectors>, args, team, sums.data());
  const std::int64_t fine = blocks * columns;
  coarsen({},
          {sums.data(), sums.data() + fine, fine, {1, columns}, columns, nullptr, nullptr, args.dweight, args.dbias},
          queue);
}

}  // namespace

bool rows_grad_fits(const BackwardArgs& args) {
  const Partition norm = canonical(args.norm), affine = canonical(args.affine);
  const std::int64_t width = 16 / static_cast<std::int64_t>(size_of(args.dtype)), columns = norm.reduce1;
  bool fits = args.record == nullptr && args.along && args.wants_weight && !args.direct.given() &&
              norm.elements() > 0 && norm.reduce0 == 1 && affine == Partition{1, norm.keep1, columns, 1};
  for (const void* p : {args.x, args.dy, static_cast<const void*>(args.dx), args.weight.data})
    fits = fits && is_vector_aligned(p);
  return fits && args.activation.kind == ActivationKind::identity && args.dresidual == nullptr &&
         args.frame.r == nullptr && columns % width == 0 && columns <= width * most_vectors * most_threads / 2;
}

void rows_grad(const BackwardArgs& args, Queue& queue) {
  const std::int64_t columns = args.norm.group_size();
  visit(args.dtype, [&]<class T>(std::type_identity<T>) {
    const TeamShape team = team_of<T>(columns);
    if (columns <= std::int64_t{team.threads} * vector_width<T>)
      rows_grad_of<T, 1>(args, team, queue);
    else
      rows_grad_of<T, most_vectors>(args, team, queue);
  });
}

}  // namespace allnorm::cuda
