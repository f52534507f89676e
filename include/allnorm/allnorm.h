/* The C interface of allnorm: any layer of the catalogue by text, its tensors by the names of its slots. For bindings of
 * other languages; C++ has allnorm/operation.hpp.
 *
 * Functions that can fail return a status; ALLNORM_OK is 0, and allnorm_error() has the text of this thread's last
 * failure. No exception leaves a function. Handles are made by functions with `made` and released by those that end in
 * _free, which take NULL too. What a handle was made from (a queue, a group) is kept by it as long as it needs it, but
 * a queue must outlive what was made with it. Strings are UTF-8; those that are returned live as long as the library. */
#ifndef ALLNORM_ALLNORM_H
#define ALLNORM_ALLNORM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ALLNORM_API __attribute__((visibility("default")))

typedef int32_t allnorm_status;
enum {
  ALLNORM_OK = 0,
  ALLNORM_INVALID_ARGUMENT, /* an attribute, a shape or a missing tensor: the call itself is wrong */
  ALLNORM_INVALID_INPUT,    /* the content of a tensor or of a state is wrong */
  ALLNORM_UNSUPPORTED,      /* a device or a part that this build or machine lacks */
  ALLNORM_DEVICE,           /* an accelerator reported an error, or memory is used up */
  ALLNORM_TRANSPORT,        /* the exchange between ranks failed */
  ALLNORM_MISMATCH,         /* the ranks of a group disagree with each other */
  ALLNORM_TIMEOUT,          /* a rank is missing or late */
  ALLNORM_ABORTED           /* another rank failed first */
};

typedef int32_t allnorm_dtype;
enum { ALLNORM_F64 = 0, ALLNORM_F32, ALLNORM_F16, ALLNORM_BF16, ALLNORM_I64 };

/* A dense tensor, borrowed, under the name of a slot. `shape` is (N, C, space...) in both orders of memory. */
typedef struct allnorm_tensor {
  const char* slot;
  void* data;
  const int64_t* shape; /* (rank) */
  int32_t rank;         /* at most 8 */
  allnorm_dtype dtype;
  int32_t channels_last; /* not 0: memory has the channels last */
  int32_t gpu;           /* the number of the GPU whose memory it is; -1: the CPU's */
} allnorm_tensor;

typedef struct allnorm_queue allnorm_queue;         /* work in order on one device */
typedef struct allnorm_group allnorm_group;         /* one rank's place among ranks that share statistics */
typedef struct allnorm_operation allnorm_operation; /* a layer object */
typedef struct allnorm_call allnorm_call;           /* what a forward call leaves for backward; borrows its tensors */
typedef struct allnorm_state allnorm_state;         /* everything that a layer's next call depends on */

ALLNORM_API const char* allnorm_version(void);
/* One line: the thing, what it was, what it must be. Valid until this thread's next failure. */
ALLNORM_API const char* allnorm_error(void);

/* The rows of the catalogue in order; NULL past the last. */
ALLNORM_API const char* allnorm_layer_name(size_t index);
ALLNORM_API const char* allnorm_layer_summary(size_t index);

/* ---- queues and groups: a queue is used by one thread at a time ---- */
ALLNORM_API allnorm_status allnorm_queue_cpu(int32_t threads, allnorm_queue** made);
ALLNORM_API allnorm_status allnorm_queue_cuda(int32_t gpu, allnorm_queue** made); /* with a stream of its own */
ALLNORM_API allnorm_status allnorm_queue_over(int32_t gpu, void* stream, allnorm_queue** made); /* over a cudaStream_t */
ALLNORM_API allnorm_status allnorm_queue_wait(allnorm_queue* queue);
ALLNORM_API void allnorm_queue_free(allnorm_queue* queue);

/* Writes `ranks` groups to `made`, [r] for a thread that is rank r; ranks that wait longer than `timeout` seconds fail. */
ALLNORM_API allnorm_status allnorm_threads(int32_t ranks, double timeout, allnorm_group** made);
ALLNORM_API void allnorm_group_free(allnorm_group* group);

/* ---- layers ---- */
/* `layer`: "NAME[:attribute=value...]". `channels`: C. `group`: NULL for one rank alone. `name`: the same on all ranks;
 * NULL or "" for the row's own. */
ALLNORM_API allnorm_status allnorm_operation_make(const char* layer, int64_t channels, allnorm_group* group,
                                                  allnorm_queue* queue, const char* name, allnorm_operation** made);
ALLNORM_API void allnorm_operation_free(allnorm_operation* operation);
ALLNORM_API void allnorm_set_training(allnorm_operation* operation, int32_t training);

/* What a slot is: a tensor that is given with forward (INPUT), or with backward beside grad_output (UPSTREAM); the
 * gradient of one of the former (GRADIENT, "grad_" and its name); a statistic of a call (STATISTIC); or a state
 * (STATE). "input", "output", "grad_output" and "grad_input" are everywhere and not listed. */
enum { ALLNORM_INPUT = 0, ALLNORM_UPSTREAM, ALLNORM_GRADIENT, ALLNORM_STATISTIC, ALLNORM_STATE };
typedef struct allnorm_slot {
  const char* name;
  const char* help;
  int32_t kind;
  int32_t in_order; /* not 0: an input whose memory has the channels where the input has them */
} allnorm_slot;
/* The slots that exist with the operation's attributes; false (0) past the last. */
ALLNORM_API int32_t allnorm_operation_slot(const allnorm_operation* operation, size_t index, allnorm_slot* slot);
/* The shape of a statistic, a parameter or a map for an input of that shape: `shape` has room for 8. Slots whose shape is
 * the caller's choice (labels, tables, styles) are ALLNORM_UNSUPPORTED. */
ALLNORM_API allnorm_status allnorm_slot_shape(const allnorm_operation* operation, const char* slot,
                                              const int64_t* input_shape, int32_t input_rank, int64_t* shape,
                                              int32_t* rank);

/* The shape of "output" for these inputs. */
ALLNORM_API allnorm_status allnorm_output_shape(const allnorm_operation* operation, const allnorm_tensor* inputs,
                                                size_t input_count, int64_t* shape, int32_t* rank);

/* ---- calls: tensors are on the queue's device; on a GPU calls return when their work is enqueued ---- */
/* `inputs` has "input" and what else the row lists; `outputs` has "output". `made` may be NULL where no backward call
 * follows. */
ALLNORM_API allnorm_status allnorm_forward(allnorm_operation* operation, const allnorm_tensor* inputs, size_t input_count,
                                           const allnorm_tensor* outputs, size_t output_count, allnorm_queue* queue,
                                           allnorm_call** made);
/* The same output from an earlier call's statistics: no exchange, no change of state. */
ALLNORM_API allnorm_status allnorm_replay(allnorm_operation* operation, const allnorm_call* earlier,
                                          const allnorm_tensor* inputs, size_t input_count,
                                          const allnorm_tensor* outputs, size_t output_count, allnorm_queue* queue,
                                          allnorm_call** made);
/* The output with the state as it is, whatever the mode. */
ALLNORM_API allnorm_status allnorm_infer(allnorm_operation* operation, const allnorm_tensor* inputs, size_t input_count,
                                         const allnorm_tensor* outputs, size_t output_count, allnorm_queue* queue);
/* `inputs` has "grad_output"; `gradients` what is asked for of "grad_input" and the row's gradients. */
ALLNORM_API allnorm_status allnorm_backward(allnorm_operation* operation, const allnorm_call* call,
                                            const allnorm_tensor* inputs, size_t input_count,
                                            const allnorm_tensor* gradients, size_t gradient_count,
                                            allnorm_queue* queue);
/* What the kernels of calls that are done have found, as the failure that it is. Never waits. */
ALLNORM_API allnorm_status allnorm_check(allnorm_operation* operation);
ALLNORM_API void allnorm_call_free(allnorm_call* call);

/* A statistic's values, on the host: as many as fit into `capacity` go to `values`, which may be NULL; `count` is how
 * many there are (0 where the call has none of that name). Waits for the queue. */
ALLNORM_API allnorm_status allnorm_statistic(const allnorm_call* call, const char* name, allnorm_queue* queue,
                                             double* values, size_t capacity, size_t* count);

/* ---- state: moves values between the host and the device, and waits for the queue ---- */
ALLNORM_API allnorm_status allnorm_save(const allnorm_operation* operation, allnorm_queue* queue, allnorm_state** made);
/* The entry of that index, whose data and shape are the state's; false (0) past the last. `per_rank`: it holds this
 * rank's share of a sum over the group. */
ALLNORM_API int32_t allnorm_state_entry(const allnorm_state* state, size_t index, allnorm_tensor* entry,
                                        int32_t* per_rank);
ALLNORM_API void allnorm_state_free(allnorm_state* state);
/* `per_rank` (count) may be NULL: none is. `drop_window`: a window and an open batch start anew, so that a state of
 * another number of ranks loads. Everything is checked before anything is changed. */
ALLNORM_API allnorm_status allnorm_load(allnorm_operation* operation, const allnorm_tensor* entries,
                                        const int32_t* per_rank, size_t count, int32_t drop_window,
                                        allnorm_queue* queue);

#ifdef __cplusplus
}
#endif
#endif
