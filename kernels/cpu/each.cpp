// A step of an operation, group after group.
#include <algorithm>

#include "kernels/cpu/kernels.hpp"
#include "kernels/group_steps.hpp"
#include "src/runtime/parallel.hpp"

namespace allnorm::cpu {

void each(const GroupSteps& steps, std::int64_t groups, Queue& queue) {
  constexpr std::int64_t task_groups = 1 << 14;
  std::visit(
      [&](const auto& step) {
        parallel(queue, (groups + task_groups - 1) / task_groups, [&](std::int64_t task) {
          const auto own = step;  // nothing that is written can be part of it
          const std::int64_t end = std::min(groups, (task + 1) * task_groups);
          for (std::int64_t g = task * task_groups; g < end; ++g) own(g);
        });
      },
      steps.of);
}

}  // namespace allnorm::cpu
