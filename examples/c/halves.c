/* Cross-GPU Batch Normalization of four values on two ranks whose exchange is this program's: a copy. In a job it is an
 * all-gather of whatever the ranks talk with.
 * cc halves.c $(pkg-config --cflags --libs allnorm) && ./a.out */
#include <allnorm/allnorm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ranks = 2, values = 2, room = 1024 }; /* doubles */

static const int64_t shape[2] = {values, 1}, one[1] = {1}; /* (N, C) */
static struct rank {
  allnorm_halves* layer;
  double x[values], dy[values], y[values], dx[values];
  float running_mean, running_var;
  int64_t tracked;
  double frame[8], work[room], record[room];
} all[ranks] = {{.x = {1, 2}, .dy = {1, 0}, .running_var = 1}, {.x = {3, 4}, .running_var = 1}};
static char records[ranks * room * sizeof(double)];

static void expect(allnorm_status status) {
  if (status == ALLNORM_OK) return;
  fprintf(stderr, "%s\n", allnorm_error());
  exit(1);
}

static void gather(allnorm_length record) { /* one group: the channel */
  const size_t bytes = (size_t)(record.fixed + record.each);
  for (size_t r = 0; r < ranks; ++r) memcpy(records + r * bytes, all[r].record, bytes);
}

typedef enum { forward_local, forward_finish, backward_local, backward_finish } half;
static void run(half which, allnorm_queue* queue) {
  for (int r = 0; r < ranks; ++r) {
    struct rank* own = &all[r];
    const allnorm_tensor inputs[] = {{"input", own->x, shape, 2, ALLNORM_F64, 0, -1},
                                     {"grad_output", own->dy, shape, 2, ALLNORM_F64, 0, -1},
                                     {"running_mean", &own->running_mean, one, 1, ALLNORM_F32, 0, -1},
                                     {"running_var", &own->running_var, one, 1, ALLNORM_F32, 0, -1},
                                     {"num_batches_tracked", &own->tracked, one, 1, ALLNORM_I64, 0, -1}};
    const allnorm_tensor output = {"output", own->y, shape, 2, ALLNORM_F64, 0, -1};
    const allnorm_tensor gradient = {"grad_input", own->dx, shape, 2, ALLNORM_F64, 0, -1};
    const allnorm_memory memory = {.work = own->work, .frame = own->frame, .record = own->record, .records = records};
    if (which == forward_local) expect(allnorm_halves_forward_local(own->layer, inputs, 5, &memory, queue));
    if (which == forward_finish) expect(allnorm_halves_forward_finish(own->layer, inputs, 5, &output, &memory, queue));
    if (which == backward_local)
      expect(allnorm_halves_backward_local(own->layer, inputs, 2, &gradient, 1, &memory, queue));
    if (which == backward_finish)
      expect(allnorm_halves_backward_finish(own->layer, inputs, 2, &gradient, 1, &memory, queue));
  }
}

int main(void) {
  allnorm_queue* queue = NULL;
  allnorm_halves_sizes sizes;
  expect(allnorm_queue_cpu(1, &queue));
  for (int r = 0; r < ranks; ++r)
    expect(allnorm_halves_make("sync_batch_norm:eps=0", 1, r, ranks, NULL, queue, &all[r].layer));
  expect(allnorm_halves_sizes_of(all[0].layer, &sizes));

  run(forward_local, queue);
  gather(sizes.forward_record);
  run(forward_finish, queue);
  run(backward_local, queue);
  gather(sizes.backward_record);
  run(backward_finish, queue);
  printf("mean %.1f, y %.3f %.3f %.3f %.3f, dx %.3f %.3f %.3f %.3f, running mean %.2f after %d\n", all[1].frame[0],
         all[0].y[0], all[0].y[1], all[1].y[0], all[1].y[1], all[0].dx[0], all[0].dx[1], all[1].dx[0], all[1].dx[1],
         (double)all[1].running_mean, (int)all[1].tracked);

  all[1].tracked = 7; /* a rank that is elsewhere is named on every rank, and nothing has changed by then */
  run(forward_local, queue);
  gather(sizes.forward_record);
  if (allnorm_halves_check_heads(all[0].layer, records, sizes.forward_record.fixed + sizes.forward_record.each) ==
      ALLNORM_MISMATCH)
    printf("%s\n", allnorm_error());
  for (int r = 0; r < ranks; ++r) allnorm_halves_free(all[r].layer);
  allnorm_queue_free(queue);
  return 0;
}
