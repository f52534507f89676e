// The operation of rows that compare an input's rows with vectors: cosine normalization. The kernels that other layers
// are made of centre and scale both to unit vectors; matrix products do the rest.
#include <cstddef>
#include <utility>

#include "kernels/group_steps.hpp"
#include "kernels/ops.hpp"
#include "src/arrays.hpp"
#include "src/operations.hpp"
#include "src/parameters.hpp"
#include "src/stateless_operation.hpp"

namespace allnorm {

namespace {

/// A matrix in the type that the call is computed in: somebody's tensor where it is of that type, otherwise a copy.
struct Matrix {
  DType dtype{};
  Buffer<std::byte> memory{};
  void* data = nullptr;

  static Matrix made(std::int64_t elements, DType dtype, Queue& queue) {
    Matrix matrix{dtype, {bytes_of(static_cast<std::size_t>(elements), size_of(dtype)), queue, Fill::none}};
    matrix.data = matrix.memory.data();
    return matrix;
  }
  static Matrix reading(const ConstTensorView& view, DType dtype, Queue& queue) {
    if (view.dtype == dtype) return {dtype, {}, const_cast<void*>(view.data)};  // it is only read
    Matrix matrix = made(view.elements(), dtype, queue);
    queue.ops().each({steps::Convert{{view.data, view.dtype}, {matrix.data, dtype}}}, view.elements(), queue);
    return matrix;
  }
  /// What is to become `view`, with store().
  static Matrix writing(const TensorView& view, DType dtype, Queue& queue) {
    return view.dtype == dtype ? Matrix{dtype, {}, view.data} : made(view.elements(), dtype, queue);
  }
  void store(const TensorView& view, Queue& queue) const {
    if (view.dtype == dtype) return;
    queue.ops().each({steps::Convert{{data, dtype}, {view.data, view.dtype}}}, view.elements(), queue);
  }
};

/// The rows of the input, or the vectors, as unit vectors.
struct Units {
  ConstTensorView of{};
  Partition rows{};
  Matrix values{};  // (rows, K)
  enum : std::int64_t { center, scale, steepness, zero, count };
  Arrays arrays{};  // (rows) each

  std::int64_t size() const noexcept { return rows.groups(); }
  std::int64_t length() const noexcept { return rows.group_size(); }
};

struct SavedCosine final : StatelessCall {
  Units input{}, weight{};
};

class CosineOperation final : public StatelessOperation {
 public:
  using StatelessOperation::StatelessOperation;

 private:
  std::unique_ptr<SavedCall> run_forward(const InputSlots& inputs, const OutputSlots& outputs, Queue& queue) override {
    const ConstTensorView x = inputs["input"], w = inputs["weight"];
    const TensorView y = outputs["output"];
    check(x, w, y, queue);
    const DType dtype = x.dtype == DType::f64 ? DType::f64 : DType::f32;
    auto saved = std::make_unique<SavedCosine>();
    saved->input = units(x, dtype, queue);
    saved->weight = units(w, dtype, queue);
    multiply(saved->input, saved->weight, y, queue);
    return saved;
  }

  std::unique_ptr<SavedCall> run_replay(const SavedCall& earlier, const InputSlots& inputs, const OutputSlots& outputs,
                                        Queue& queue) override {
    expect_replayed(inputs["input"].shape, own<SavedCosine>(earlier).input.of.shape);
    return run_forward(inputs, outputs, queue);
  }

  // With unit vectors u and v, y = u v^T: the gradients by u and v are dy v and dy^T u.
  void run_backward(const SavedCall& saved, const InputSlots& inputs, const OutputSlots& gradients,
                    Queue& queue) override {
    const auto& call = own<SavedCosine>(saved);
    const ConstTensorView dy = inputs["grad_output"];
    const TensorView dx = gradients["grad_input"], dw = gradients["grad_weight"];
    expect_product(dy, call.input.of, call.weight.of, queue, "grad_output");
    if (dx.given()) expect_like(dx, call.input.of, queue, "grad_input");
    expect_parameter(dw, call.weight.of.shape, queue, "grad_weight");
    const Matrix g = Matrix::reading(dy, call.input.values.dtype, queue);
    const std::int64_t M = call.weight.size();
    if (dx.given()) differentiate(call.input, {g.data, M, 1}, call.weight, dx, queue);
    if (dw.given()) differentiate(call.weight, {g.data, 1, M}, call.input, dw, queue);
  }

  /// The output, or its gradient, of these: (N, M).
  static void expect_product(const ConstTensorView& y, const ConstTensorView& x, const ConstTensorView& w,
                             const Queue& queue, const char* name) {
    const Shape shape{x.shape[0], w.shape[0]};
    expect(y.shape == shape, Code::invalid_input, [&] {
      return std::string(name) + " has shape " + to_string(y.shape) + ", must have " + to_string(shape) +
             ": rows of input and of weight";
    });
    expect_like(y, {y.data, x.dtype, x.device, shape, x.order}, queue, name);
  }

  static void check(const ConstTensorView& x, const ConstTensorView& w, const TensorView& y, const Queue& queue) {
    expect_input(x, queue);
    expect(x.shape.rank() == 2 && x.shape[1] > 0, Code::invalid_input, [&] {
      return "input has shape " + to_string(x.shape) + ", must have 2 axes (N,K), and at least one value in a row";
    });
    expect(w.given(), Code::invalid_argument, "weight is missing, must be given");
    expect(w.shape.rank() == 2 && w.shape[1] == x.shape[1], Code::invalid_input, [&] {
      return "weight has shape " + to_string(w.shape) + ", must have 2 axes (M,K), the second of " +
             std::to_string(x.shape[1]) + " as input";
    });
    expect_parameter(w, w.shape, queue, "weight");
    expect_product(y, x, w, queue, "output");
  }

  Units units(const ConstTensorView& of, DType dtype, Queue& queue) const {
    using U = Units;
    Units made;
    made.of = of;
    made.rows = {1, 1, of.shape[0], of.shape[1]};
    made.values = Matrix::made(of.elements(), dtype, queue);
    made.arrays = Arrays(U::count, made.size(), queue, Fill::zero);
    Arrays& a = made.arrays;
    const Matrix values = Matrix::reading(of, dtype, queue);
    queue.ops().moments({values.data, dtype, made.rows, a[U::center], a[U::scale]}, queue);
    const NormOptions& o = layer().options;
    queue.ops().each({steps::CosineForward{o.eps_mode, o.eps, o.centred, static_cast<double>(made.length()),
                                           a[U::center], a[U::scale], a[U::center], a[U::scale], a[U::steepness]}},
                     made.size(), queue);
    queue.ops().apply({.x = values.data,
                       .y = made.values.data,
                       .dtype = dtype,
                       .partition = made.rows,
                       .center = a[U::center],
                       .scale = a[U::scale]},
                      queue);
    return made;
  }

  /// y = u v^T.
  static void multiply(const Units& u, const Units& v, const TensorView& y, Queue& queue) {
    const std::int64_t K = u.length();
    const Matrix product = Matrix::writing(y, u.values.dtype, queue);
    queue.ops().matrix_product({.a = {u.values.data, K, 1},
                                .b = {v.values.data, 1, K},
                                .product = product.data,
                                .dtype = product.dtype,
                                .rows = u.size(),
                                .inner = K,
                                .columns = v.size()},
                               queue);
    product.store(y, queue);
  }

  /// The gradient by what `u` was made of: of the product of these `shares` (rows of u, rows of v) and v.
  static void differentiate(const Units& u, MatrixProductArgs::Matrix shares, const Units& v, const TensorView& to,
                            Queue& queue) {
    using U = Units;
    const std::int64_t K = u.length();
    const DType dtype = u.values.dtype;
    const Matrix by_unit = Matrix::made(u.size() * K, dtype, queue), gradient = Matrix::writing(to, dtype, queue);
    queue.ops().matrix_product({.a = shares,
                                .b = {v.values.data, K, 1},
                                .product = by_unit.data,
                                .dtype = dtype,
                                .rows = u.size(),
                                .inner = v.size(),
                                .columns = K},
                               queue);
    enum : std::int64_t { sum, sum_u, of_u, count = of_u + 4 };
    Arrays arrays(count, u.size(), queue);
    queue.ops().moments_grad({.x = u.values.data,
                              .dy = by_unit.data,
                              .dtype = dtype,
                              .partition = u.rows,
                              .center = u.arrays[U::zero],
                              .sum_g = arrays[sum],
                              .sum_gx = arrays[sum_u]},
                             queue);
    const GradArrays k = arrays.grad(of_u);
    queue.ops().each({steps::CosineBackward{u.arrays[U::scale], u.arrays[U::steepness], arrays[sum_u], k}}, u.size(),
                     queue);
    queue.ops().apply_grad({.x = u.values.data,
                            .dy = by_unit.data,
                            .dx = gradient.data,
                            .dtype = dtype,
                            .partition = u.rows,
                            .center = u.arrays[U::zero],
                            .gain = k.gain,
                            .slope = k.slope,
                            .offset = k.offset,
                            .power = k.power},
                           queue);
    gradient.store(to, queue);
  }
};

}  // namespace

std::unique_ptr<Operation> make_cosine_operation(const Layer& layer, std::int64_t, std::shared_ptr<Communicator> group,
                                                 Queue&, std::string name) {
  return std::make_unique<CosineOperation>(layer, std::move(group), std::move(name));
}

}  // namespace allnorm
