/* Batch normalization of four values of one channel through the C interface, forward and backward.
 * cc batch_norm.c $(pkg-config --cflags --libs allnorm) && ./a.out */
#include <allnorm/allnorm.h>
#include <stdio.h>
#include <stdlib.h>

static void expect(allnorm_status status) {
  if (status == ALLNORM_OK) return;
  fprintf(stderr, "%s\n", allnorm_error());
  exit(1);
}

int main(void) {
  double x[4] = {1, 2, 3, 4}, dy[4] = {1, 0, 0, 0}, y[4], dx[4], mean = 0;
  const int64_t shape[2] = {4, 1}; /* (N, C) */
  const allnorm_tensor input = {"input", x, shape, 2, ALLNORM_F64, 0, -1};
  const allnorm_tensor output = {"output", y, shape, 2, ALLNORM_F64, 0, -1};
  const allnorm_tensor grad_output = {"grad_output", dy, shape, 2, ALLNORM_F64, 0, -1};
  const allnorm_tensor grad_input = {"grad_input", dx, shape, 2, ALLNORM_F64, 0, -1};
  allnorm_queue* queue = NULL;
  allnorm_operation* layer = NULL;
  allnorm_call* call = NULL;
  size_t count = 0;

  expect(allnorm_queue_cpu(1, &queue));
  expect(allnorm_operation_make("batch_norm:eps=0", 1, NULL, queue, NULL, &layer));
  expect(allnorm_forward(layer, &input, 1, &output, 1, queue, &call));
  expect(allnorm_statistic(call, "mean", queue, &mean, 1, &count));
  expect(allnorm_backward(layer, call, &grad_output, 1, &grad_input, 1, queue));
  printf("allnorm %s: mean %.1f, y %.3f %.3f %.3f %.3f, dx %.3f %.3f %.3f %.3f\n", allnorm_version(), mean, y[0], y[1],
         y[2], y[3], dx[0], dx[1], dx[2], dx[3]);
  allnorm_call_free(call);
  allnorm_operation_free(layer);
  allnorm_queue_free(queue);
  return 0;
}
