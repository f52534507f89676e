// What operations do between the kernels of ops.hpp, a few doubles per group: every step that Ops::each can take. A
// step is a struct of plain values and of pointers to the queue's memory, whose operator() does one group's part, on
// host or device, and reads nothing that another group's writes.
#pragma once

#include <variant>

#include "kernels/adaptive.hpp"
#include "kernels/lengths.hpp"
#include "kernels/mixture.hpp"
#include "kernels/values.hpp"

namespace allnorm {

struct GroupSteps {
  std::variant<steps::AdaptiveForward, steps::AdaptiveBackward,                                   //
               steps::LengthForward, steps::LengthBackward,                                       //
               steps::MixtureForward, steps::MixtureBackward,                                     //
               steps::WriteGradient,                                                              //
               steps::Widen<double>, steps::Widen<float>, steps::Widen<f16>, steps::Widen<bf16>,  //
               steps::Narrow<f16>, steps::Narrow<bf16>>
      of;
};

}  // namespace allnorm
