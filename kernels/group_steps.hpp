// What operations do between the kernels of ops.hpp, a few doubles per group: every step that Ops::each can take. A
// step is a struct of plain values and of pointers to the queue's memory, whose operator() does one group's part, on
// host or device, and reads nothing that another group's writes.
#pragma once

#include <variant>

#include "kernels/adaptive.hpp"
#include "kernels/cosine.hpp"
#include "kernels/kept_state.hpp"
#include "kernels/lengths.hpp"
#include "kernels/mixture.hpp"
#include "kernels/record_steps.hpp"
#include "kernels/switchable_steps.hpp"
#include "kernels/values.hpp"

namespace allnorm {

struct GroupSteps {
  std::variant<steps::AdaptiveForward, steps::AdaptiveBackward,                                            //
               steps::LengthForward, steps::LengthBackward,                                                //
               steps::CosineForward, steps::CosineBackward,                                                //
               steps::MixtureForward, steps::MixtureBackward,                                              //
               steps::SwitchedInstances, steps::SwitchedPools, steps::SwitchedTurn, steps::SwitchedBatch,  //
               steps::SwitchedSettle, steps::SwitchedMap, steps::SwitchedForward,                          //
               steps::SwitchedTerms, steps::SwitchedShares, steps::SwitchedLogits, steps::SwitchedInput,   //
               steps::HashChannels, steps::OpenForward, steps::OpenBackward,                               //
               steps::CompareHeads, steps::JudgeHeads, steps::SumRanks, steps::Advance,                    //
               steps::TakeState, steps::GiveState,                                                         //
               steps::WriteGradient, steps::Convert,                                                       //
               steps::Narrow<f16>, steps::Narrow<bf16>>
      of;
};

}  // namespace allnorm
