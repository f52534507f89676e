// A call of a rank that exchanges nothing, cut along the outermost index of its groups. A slab is such a call too: its
// moments, or sums, are taken and its map follows while what they read is in the cache.
#pragma once

#include <cstdint>

#include "kernels/cpu/grid.hpp"

namespace allnorm::cpu {

/// How a call is cut, in values. Like every grid it follows from the shape, and here from the number of threads too: no
/// sum goes beyond a slab but those of a task.
struct Slabs {
  std::int64_t whole = 0;  ///< of the call
  std::int64_t slab = 0;   ///< of a slab, but the last one; 0: the call is not to be cut
  std::int64_t task = 0;   ///< of a task: slabs that follow each other, on one thread

  bool cuts() const noexcept { return slab > 0; }
  std::int64_t tasks() const noexcept { return ceil_div(whole, task); }

  /// Calls run(part of args, task, queue of one thread) for every slab.
  template <class Args, class Run>
  void for_each(const Args& args, Queue& queue, const Run& run) const {
    Queue& one = queue.threads() == 1 ? queue : queue_of_one();
    for_tasks(queue, tasks(), [&](std::int64_t t) {
      const std::int64_t end = min_of(whole, (t + 1) * task);
      for (std::int64_t first = t * task; first < end; first += slab)
        run(part_of(args, first, min_of(slab, end - first)), t, one);
    });
  }

  /// `values` values of the call from memory offset `first` on. Its parameters are the whole call's, and their
  /// gradients too, but of gamma and beta that every value has its own of.
  static ForwardArgs part_of(ForwardArgs args, std::int64_t first, std::int64_t values);
  static BackwardArgs part_of(BackwardArgs args, std::int64_t first, std::int64_t values);

 private:
  static Queue& queue_of_one();
};

Slabs slabs_of(const ForwardArgs& args, const Queue& queue);
/// Where gamma's gradient is summed along the groups, a task has the rows of one part of that sum.
Slabs slabs_of(const BackwardArgs& args, const Queue& queue);

/// Of the maps of a second half that comes by itself: sums may cross these slabs.
Slabs slabs_of_maps(const BackwardArgs& args, const Queue& queue);

/// Gamma's gradient is a sum over values of several groups each.
inline bool sums_along(const BackwardArgs& args) noexcept {
  return args.along && args.wants_weight && args.affine.group_size() > 1;
}

/// Gamma's gradient is a map, and there is another one that reads the same: one pass for both.
bool maps_with_gradient(const BackwardArgs& args) noexcept;

}  // namespace allnorm::cpu
