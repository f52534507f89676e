// The halves of a backward call on the CPU, as those of forward ones (halves.cpp).
#include <algorithm>

#include "kernels/cpu/frames.hpp"
#include "kernels/cpu/kernels.hpp"
#include "kernels/cpu/slabs.hpp"

namespace allnorm::cpu {

namespace {

/// Of every fine group: sum of g, of g * (x - center), and of what a level takes of dy.
struct FineSums {
  double *g = nullptr, *gx = nullptr, *level = nullptr;  // (F); level null where there is none

  static Values room(const BackwardArgs& args, Queue& queue) {
    return Values(index((args.level.given() ? 3 : 2) * args.fine.groups()), queue, Fill::none);
  }
  FineSums(const BackwardArgs& args, Values& room) : g(room.data()), gx(g + args.fine.groups()) {
    if (args.level.given()) level = gx + args.fine.groups();
  }
  FineSums from(std::int64_t first) const {
    FineSums part = *this;
    part.g += first, part.gx += first;
    if (level != nullptr) part.level += first;
    return part;
  }
};

void sum_fine(const BackwardArgs& args, const FineView& fine, const FineSums& sums, Queue& queue) {
  moments_grad({args.x, args.dy, args.dtype, args.fine, fine.center, fine.gate(args), sums.g, sums.gx, along_of(args),
                sums.level},
               queue);
}

/// s1 and s2 of the groups that fine groups are of.
void sum_groups(const BackwardArgs& args, const FineSums& sums) {
  const std::int64_t groups = args.norm.groups();
  double *s1 = args.sums, *s2 = args.sums + groups;
  std::fill_n(args.sums, 2 * groups, 0.0);
  for_fine_groups(args, [&](std::int64_t f, std::int64_t g, std::int64_t p) {
    const auto terms = steps::grad_terms(args.frame.get(g), steps::gamma_at(args, p), sums.g[f], sums.gx[f]);
    s1[g] += terms.s1;
    s2[g] += terms.s2;
  });
  for (std::int64_t g = 0; g < groups; ++g) args.direct.join(args.frame.rstd, g, s1[g], s2[g]);
}

/// Gradients of what is folded into fine groups, from their sums. Where nothing is, the affine part may have no groups.
void sum_parameters(const BackwardArgs& args, const FineSums& sums, Queue& queue) {
  const bool has_more = args.level.given() || args.learned_eps.given();
  if (args.along || !(args.wants_weight || has_more)) return;
  const std::int64_t size = args.affine.groups();
  Values all(index((has_more ? 4 : 2) * size), queue);
  double *const dweight = all.data(), *const dbias = dweight + size;
  double *const dlevel = has_more ? dbias + size : nullptr, *const deps = has_more ? dlevel + size : nullptr;
  for_fine_groups(args, [&](std::int64_t f, std::int64_t g, std::int64_t p) {
    const auto terms = steps::grad_terms(args.frame.get(g), steps::gamma_at(args, p), sums.g[f], sums.gx[f]);
    dweight[p] += terms.dgamma;
    dbias[p] += terms.dbeta;
    if (args.level.given()) dlevel[p] += sums.level[f];
    if (args.learned_eps.given()) deps[p] += steps::eps_grad(args, g, terms.s2);
  });
  for (std::int64_t p = 0; p < size; ++p) {
    if (args.wants_weight) args.dweight.set(p, dweight[p]), args.dbias.set(p, dbias[p]);
    if (args.level.given()) args.dlevel.set(p, dlevel[p]);
    if (args.learned_eps.given()) args.deps.set(p, deps[p]);
  }
}

AffineGradArgs along_gradient(const BackwardArgs& args, const FineView& fine) {
  return {args.x, args.dy, args.dtype, args.norm, fine.center, fine.gate(args), along_of(args)};
}

/// Gradients of gamma and beta along, from `parts` sums of both, (parts, 2, affine groups); the first takes the others.
void join_along(const BackwardArgs& args, Values& sums, std::int64_t parts) {
  const std::int64_t size = args.affine.groups();
  for (std::int64_t part = 1; part < parts; ++part)
    for (std::int64_t p = 0; p < 2 * size; ++p) sums[index(p)] += sums[index(part * 2 * size + p)];
  for (std::int64_t p = 0; p < size; ++p) {
    args.dweight.set(p, sums[index(p)]);
    args.dbias.set(p, sums[index(size + p)]);
  }
}

void sum_along(const BackwardArgs& args, const FineView& fine, Queue& queue) {
  AffineGradArgs affine = along_gradient(args, fine);
  if (affine_grad_values(affine, args.dweight, args.dbias, args.norm.elements(), queue)) return;
  Values sums(index(2 * args.affine.groups()), queue, Fill::none);
  affine.dweight = sums.data();
  affine.dbias = sums.data() + args.affine.groups();
  affine_grad(affine, queue);
  join_along(args, sums, 1);
}

/// All of these sums in one read, by one thread; false, and nothing is done, where that adds up in another order.
bool sum_in_one(const BackwardArgs& args, const FineView& fine, const FineSums& sums, Queue& queue) {
  if (!sums_along(args) || args.norm.elements() == 0 || queue.threads() > 1) return false;
  if (along_grid(canonical(args.affine)).parts > 1) return false;
  Values along(index(2 * args.affine.groups()), queue);
  if (!rows_grad(along_gradient(args, fine), sums.g, sums.gx, along.data())) return false;
  join_along(args, along, 1);
  return true;
}

/// `whole`: values of the call that `args` is, or is a part of.
void map_gradient(const BackwardArgs& args, const FineView& fine, const GradArrays& k, std::int64_t whole,
                  Queue& queue) {
  apply_grad_part({args.x, args.dy, args.dx, args.dresidual, args.dtype, args.fine, fine.center, fine.gate(args),
                   k.gain, k.slope, k.offset, k.power, along_of(args)},
                  whole, queue);
}

/// dx, and in the same pass the gradients of gammas that every value has its own of.
void map_by_slabs(const BackwardArgs& call, const FineView& fine, const GradArrays& k, Queue& queue) {
  const std::int64_t whole = call.norm.elements();
  const auto run = [&](const BackwardArgs& slab, std::int64_t, Queue& own) {
    const std::int64_t first = slab.to_affine.first;
    const FineView of_slab = fine.from(first);
    affine_grad_values(along_gradient(slab, of_slab), slab.dweight, slab.dbias, whole, own);
    map_gradient(slab, of_slab, {k.gain + first, k.slope + first, k.offset + first, k.power + first}, whole, own);
  };
  const Slabs slabs = slabs_of_maps(call, queue);
  if (!slabs.cuts()) return run(call, 0, queue);
  slabs.for_each(call, queue, run);
}

void backward_by_slabs(const BackwardArgs& call, Queue& queue) {
  const Slabs slabs = slabs_of(call, queue);
  Values room = FineSums::room(call, queue);
  const FineSums sums(call, room);
  const std::int64_t columns = sums_along(call) ? call.affine.groups() : 0;
  Values along(index(slabs.tasks() * 2 * columns), queue);  // (tasks, 2, columns)
  with_read_parameters(call, [&](const BackwardArgs& args) {
    slabs.for_each(args, queue, [&](const BackwardArgs& slab, std::int64_t task, Queue& one) {
      const FineCoefficients fine(slab, one);
      const FineSums of_slab = sums.from(slab.to_affine.first);
      double* const of_columns = along.data() + task * 2 * columns;
      const bool in_one = columns > 0 && rows_grad(along_gradient(slab, fine), of_slab.g, of_slab.gx, of_columns);
      if (!in_one) sum_fine(slab, fine, of_slab, one);
      sum_groups(slab, of_slab);
      if (columns > 0 && !in_one)
        affine_grad_rows(along_gradient(slab, fine), of_columns);
      else if (columns == 0 && args.along && args.wants_weight)
        affine_grad_values(along_gradient(slab, fine), slab.dweight, slab.dbias, slabs.whole, one);
      Values frames;
      map_gradient(slab, fine, grad_frames(slab, {nullptr, 0, 0, slab.sums}, frames, one), slabs.whole, one);
    });
  });
  if (columns > 0) join_along(call, along, slabs.tasks());
  sum_parameters(call, sums, queue);
}

}  // namespace

void backward_local(BackwardArgs& args, Queue& queue) {
  if (!args.rules.takes_moments() && !args.wants_weight) return;
  if (slabs_of(args, queue).cuts()) {
    args.route = Route::groups;
    return;
  }
  const FineCoefficients fine(args, queue);
  Values room = FineSums::room(args, queue);
  const FineSums sums(args, room);
  const bool in_one = sum_in_one(args, fine, sums, queue);
  if (!in_one) sum_fine(args, fine, sums, queue);
  sum_groups(args, sums);
  sum_parameters(args, sums, queue);
  if (!in_one && args.along && args.wants_weight && !maps_with_gradient(args)) sum_along(args, fine, queue);
  if (args.record == nullptr) return;
  RecordHead head{args.header, 0, static_cast<std::uint64_t>(2 * args.norm.groups())};
  head.header.set(Field::call, static_cast<std::uint64_t>(args.frame.scalars->call));
  *reinterpret_cast<RecordHead*>(args.record) = head;
}

void backward_finish(const BackwardArgs& args, const Gathered& gathered, Queue& queue) {
  if (args.route == Route::groups) return backward_by_slabs(args, queue);
  if (args.dx == nullptr && args.dresidual == nullptr) return;
  const FineCoefficients fine(args, queue);
  Values room;
  const GradArrays k = grad_frames(args, gathered, room, queue);
  if (maps_with_gradient(args)) return map_by_slabs(args, fine, k, queue);
  map_gradient(args, fine, k, args.norm.elements(), queue);
}

}  // namespace allnorm::cpu
