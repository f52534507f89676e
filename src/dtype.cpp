#include "allnorm/dtype.hpp"

#include <string>

namespace allnorm {

std::string_view to_string(DType dtype) noexcept {
  constexpr std::string_view names[] = {"f64", "f32", "f16", "bf16", "i64"};
  return names[static_cast<int>(dtype)];
}

void refuse_integers(std::string_view name) {
  fail(Code::invalid_argument, std::string(name) + " has dtype i64, must have f64, f32, f16 or bf16");
}

DType parse_dtype(std::string_view name) {
  for (const DType dtype : {DType::f64, DType::f32, DType::f16, DType::bf16})
    if (name == to_string(dtype)) return dtype;
  fail(Code::invalid_argument, "dtype is '" + std::string(name) + "', must be f64, f32, f16 or bf16");
}

}  // namespace allnorm
