// What the operators for PyTorch share: tensors as the C interface takes them, layers made ready, errors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "allnorm/allnorm.h"

namespace allnorm_torch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

/// A str of an operator. (std::string as torch's headers read it is never freed, as of torch 2.11.)
struct Text {
  std::string value;
};

/// Throws what has failed: its text ends in " [allnorm: code=6 layer=NAME]", with the status as code.
void expect_ok(allnorm_status status, const std::string& name);
[[noreturn]] void refuse(const std::string& what, const std::string& name);

/// Memory of a new tensor on the device of `like`: (size), or of the sizes of `like` in the order in which it lies.
/// (torch's own stable::empty_like and new_empty look their operators up by name.)
Tensor new_array(const Tensor& like, std::int64_t size, ScalarType type);
Tensor new_like(const Tensor& like);

/// Tensors by the names of slots. They must outlive this.
class Slots {
 public:
  explicit Slots(const std::string& layer_name) : name_(layer_name) {}

  /// `writes`: its memory is written. Throws for a tensor that is not dense in that order.
  void add(const char* slot, const Tensor& tensor, bool channels_last, bool writes = false);
  void add(const char* slot, const Optional& tensor, bool channels_last = false, bool writes = false) {
    if (tensor) add(slot, *tensor, channels_last, writes);
  }
  const allnorm_tensor* data() const noexcept { return slots_.data(); }
  std::size_t size() const noexcept { return size_; }

 private:
  static constexpr std::size_t most = 16;
  std::array<allnorm_tensor, most> slots_{};
  std::size_t size_ = 0;
  const std::string& name_;
};

bool is_dense(const Tensor& tensor, bool channels_last);
/// Throws unless `tensor`, which `what` calls, is that many contiguous values of the type in the host's memory.
void expect_array(const char* what, const Tensor& tensor, ScalarType type, std::int64_t size, const std::string& name);

/// This thread's queue: over torch's threads.
allnorm_queue* queue();

/// A layer made ready on this thread. One that is asked for again is the same.
struct Ready {
  struct Free {
    void operator()(allnorm_halves* halves) const noexcept { allnorm_halves_free(halves); }
  };
  std::unique_ptr<allnorm_halves, Free> halves{};
  allnorm_halves_sizes sizes{};
  std::string name{};
  std::vector<std::int64_t> shape{}, conv_shape{};  // of the last input and its conv_weight; empty without one
  std::int64_t groups = 0, work = 0;                // of those shapes

  /// Takes in an input of that shape. Throws as the layer refuses it. Layers of one name may follow convolutions of
  /// other sizes, and backward calls have no conv_weight: what a call needs depends on it.
  void look_at(const Tensor& input, const Optional& conv_weight, const Slots& inputs);
};
Ready& ready(const std::string& layer, const std::string& name, std::int64_t channels, std::int64_t rank,
             std::int64_t ranks);

/// Scratch of this thread.
void* scratch(std::int64_t bytes);

}  // namespace allnorm_torch

template <>
struct torch::stable::detail::ToImpl<allnorm_torch::Text> {
  static allnorm_torch::Text call(StableIValue value, std::uint64_t, bool) {
    const auto handle = torch::stable::detail::to<StringHandle>(value);
    std::size_t length = 0;
    const char* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    allnorm_torch::Text text{std::string(data, length)};
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
