/** @file
 * The C interface of allnorm: any layer of the catalogue by text, its tensors by the names of its slots. For bindings of
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

/** What the shared library exports. */
#define ALLNORM_API __attribute__((visibility("default")))

/** What functions that can fail return. */
typedef int32_t allnorm_status;
/** The values of allnorm_status. */
enum {
  ALLNORM_OK = 0,           /**< done */
  ALLNORM_INVALID_ARGUMENT, /**< an attribute, a shape or a missing tensor: the call itself is wrong */
  ALLNORM_INVALID_INPUT,    /**< the content of a tensor or of a state is wrong */
  ALLNORM_UNSUPPORTED,      /**< a device or a part that this build or machine lacks */
  ALLNORM_DEVICE,           /**< an accelerator reported an error, or memory is used up */
  ALLNORM_TRANSPORT,        /**< the exchange between ranks failed */
  ALLNORM_MISMATCH,         /**< the ranks of a group disagree with each other */
  ALLNORM_TIMEOUT,          /**< a rank is missing or late */
  ALLNORM_ABORTED,          /**< another rank failed first */
  ALLNORM_NON_FINITE        /**< a call's input is not finite, and the layer is to fail then */
};

/** The type of a tensor's elements. */
typedef int32_t allnorm_dtype;
/** The values of allnorm_dtype; I64 is of labels and counters. */
enum { ALLNORM_F64 = 0, ALLNORM_F32, ALLNORM_F16, ALLNORM_BF16, ALLNORM_I64 };

/** A dense tensor, borrowed, under the name of a slot. `shape` is (N, C, space...) in both orders of memory. */
typedef struct allnorm_tensor {
  const char* slot;     /**< its name */
  void* data;           /**< the first element */
  const int64_t* shape; /**< (rank) */
  int32_t rank;         /**< at most 8 */
  allnorm_dtype dtype;  /**< of the elements */
  int32_t channels_last; /**< not 0: memory has the channels last */
  int32_t gpu;           /**< the number of the GPU whose memory it is; -1: the CPU's */
} allnorm_tensor;

typedef struct allnorm_queue allnorm_queue;         /**< work in order on one device */
typedef struct allnorm_group allnorm_group;         /**< one rank's place among ranks that share statistics */
typedef struct allnorm_operation allnorm_operation; /**< a layer object */
typedef struct allnorm_call allnorm_call;           /**< what a forward call leaves for backward; borrows its tensors */
typedef struct allnorm_state allnorm_state;         /**< everything that a layer's next call depends on */

/** Of the library that runs, "0.1.0"; ALLNORM_VERSION is that of the headers. */
ALLNORM_API const char* allnorm_version(void);
/** This thread's last failure, one line: the thing, what it was, what it must be. Valid until this thread's next
 * failure. */
ALLNORM_API const char* allnorm_error(void);

/** The name of a row of the catalogue, in its order; NULL past the last. */
ALLNORM_API const char* allnorm_layer_name(size_t index);
/** What that row is, one line; NULL past the last. */
ALLNORM_API const char* allnorm_layer_summary(size_t index);

/* ---- queues and groups: a queue is used by one thread at a time ---- */
/** On the CPU, with `threads` >= 1 threads of its own. Like every queue it is used by one thread at a time. */
ALLNORM_API allnorm_status allnorm_queue_cpu(int32_t threads, allnorm_queue** made);
/** One part of a call's work. */
typedef void (*allnorm_task)(void* argument, int64_t i);
/** A caller's threads: calls task(argument, 0) ... task(argument, tasks - 1), each once, in any order and on any of the
 * queue's `threads` threads, and returns when all are done. */
typedef void (*allnorm_run)(void* context, int64_t tasks, allnorm_task task, void* argument);
/** On the CPU with the caller's threads; `run` is given `context`. */
ALLNORM_API allnorm_status allnorm_queue_pool(int32_t threads, allnorm_run run, void* context, allnorm_queue** made);
/** On a GPU, with a stream of its own. ALLNORM_UNSUPPORTED where the library was built without CUDA. */
ALLNORM_API allnorm_status allnorm_queue_cuda(int32_t gpu, allnorm_queue** made);
/** On a GPU, over the caller's cudaStream_t, which must outlive the queue. */
ALLNORM_API allnorm_status allnorm_queue_over(int32_t gpu, void* stream, allnorm_queue** made);
/** Returns when all work of the queue is done. */
ALLNORM_API allnorm_status allnorm_queue_wait(allnorm_queue* queue);
/** Releases a queue; what was made with it must be gone. */
ALLNORM_API void allnorm_queue_free(allnorm_queue* queue);

/** Writes `ranks` groups to `made`, [r] for a thread that is rank r; ranks that wait longer than `timeout` seconds
 * fail. */
ALLNORM_API allnorm_status allnorm_threads(int32_t ranks, double timeout, allnorm_group** made);
/** Releases a group. */
ALLNORM_API void allnorm_group_free(allnorm_group* group);

/* ---- layers ---- */
/** A layer object. `layer`: "NAME[:attribute=value...]". `channels`: C. `group`: NULL for one rank alone. `name`: the
 * same on all ranks; NULL or "" for the row's own. */
ALLNORM_API allnorm_status allnorm_operation_make(const char* layer, int64_t channels, allnorm_group* group,
                                                  allnorm_queue* queue, const char* name, allnorm_operation** made);
/** Releases a layer object. */
ALLNORM_API void allnorm_operation_free(allnorm_operation* operation);
/** Not 0: calls use and advance the batch's statistics; 0: they use the running ones. */
ALLNORM_API void allnorm_set_training(allnorm_operation* operation, int32_t training);

/** What a slot is: a tensor that is given with forward (INPUT), or with backward beside grad_output (UPSTREAM); the
 * gradient of one of the former (GRADIENT, "grad_" and its name); a statistic of a call (STATISTIC); or a state
 * (STATE). "input", "output", "grad_output" and "grad_input" are everywhere and not listed. */
enum { ALLNORM_INPUT = 0, ALLNORM_UPSTREAM, ALLNORM_GRADIENT, ALLNORM_STATISTIC, ALLNORM_STATE };
/** One tensor of a layer. */
typedef struct allnorm_slot {
  const char* name; /**< as allnorm_tensor has it */
  const char* help; /**< one line, for people */
  int32_t kind;     /**< ALLNORM_INPUT and so on */
  int32_t in_order; /**< not 0: an input whose memory has the channels where the input has them */
} allnorm_slot;
/** The slots that exist with the operation's attributes; false (0) past the last. */
ALLNORM_API int32_t allnorm_operation_slot(const allnorm_operation* operation, size_t index, allnorm_slot* slot);
/** The shape of a statistic, a parameter or a map for an input of that shape: `shape` has room for 8. Slots whose shape
 * is the caller's choice (labels, tables, styles) are ALLNORM_UNSUPPORTED. */
ALLNORM_API allnorm_status allnorm_slot_shape(const allnorm_operation* operation, const char* slot,
                                              const int64_t* input_shape, int32_t input_rank, int64_t* shape,
                                              int32_t* rank);

/** The shape of "output" for these inputs. */
ALLNORM_API allnorm_status allnorm_output_shape(const allnorm_operation* operation, const allnorm_tensor* inputs,
                                                size_t input_count, int64_t* shape, int32_t* rank);

/* ---- calls: tensors are on the queue's device; on a GPU calls return when their work is enqueued ---- */
/** A forward call. `inputs` has "input" and what else the row lists; `outputs` has "output". `made` may be NULL where
 * no backward call follows. */
ALLNORM_API allnorm_status allnorm_forward(allnorm_operation* operation, const allnorm_tensor* inputs, size_t input_count,
                                           const allnorm_tensor* outputs, size_t output_count, allnorm_queue* queue,
                                           allnorm_call** made);
/** The same output from an earlier call's statistics: no exchange, no change of state. */
ALLNORM_API allnorm_status allnorm_replay(allnorm_operation* operation, const allnorm_call* earlier,
                                          const allnorm_tensor* inputs, size_t input_count,
                                          const allnorm_tensor* outputs, size_t output_count, allnorm_queue* queue,
                                          allnorm_call** made);
/** The output with the state as it is, whatever the mode. */
ALLNORM_API allnorm_status allnorm_infer(allnorm_operation* operation, const allnorm_tensor* inputs, size_t input_count,
                                         const allnorm_tensor* outputs, size_t output_count, allnorm_queue* queue);
/** A backward call. `inputs` has "grad_output"; `gradients` what is asked for of "grad_input" and the row's gradients.
 * */
ALLNORM_API allnorm_status allnorm_backward(allnorm_operation* operation, const allnorm_call* call,
                                            const allnorm_tensor* inputs, size_t input_count,
                                            const allnorm_tensor* gradients, size_t gradient_count,
                                            allnorm_queue* queue);
/** What the kernels of calls that are done have found, as the failure that it is. Never waits. */
ALLNORM_API allnorm_status allnorm_check(allnorm_operation* operation);
/** Releases what a forward call left. */
ALLNORM_API void allnorm_call_free(allnorm_call* call);

/** A statistic's values, on the host: as many as fit into `capacity` go to `values`, which may be NULL; `count` is how
 * many there are (0 where the call has none of that name). Waits for the queue. */
ALLNORM_API allnorm_status allnorm_statistic(const allnorm_call* call, const char* name, allnorm_queue* queue,
                                             double* values, size_t capacity, size_t* count);

/* ---- state: moves values between the host and the device, and waits for the queue ---- */
/** Copies the whole state to the host. */
ALLNORM_API allnorm_status allnorm_save(const allnorm_operation* operation, allnorm_queue* queue, allnorm_state** made);
/** The entry of that index, whose data and shape are the state's; false (0) past the last. `per_rank`: it holds this
 * rank's share of a sum over the group. */
ALLNORM_API int32_t allnorm_state_entry(const allnorm_state* state, size_t index, allnorm_tensor* entry,
                                        int32_t* per_rank);
/** Releases a state. */
ALLNORM_API void allnorm_state_free(allnorm_state* state);
/** Sets what allnorm_state_entry gave. `per_rank` (count) may be NULL: none is. `drop_window`: a window and an open
 * batch start anew, so that a state of another number of ranks loads. Everything is checked before anything is
 * changed. */
ALLNORM_API allnorm_status allnorm_load(allnorm_operation* operation, const allnorm_tensor* entries,
                                        const int32_t* per_rank, size_t count, int32_t drop_window,
                                        allnorm_queue* queue);

/* ---- halves: calls whose exchange between ranks and whose memory are the caller's (C++: allnorm/halves.hpp) ---- */
/** A layer made ready, of a row with mean and variance, for calls whose exchange between ranks and whose memory are the
 * caller's; any number of threads may use it at a time, each with a queue of its own.
 *
 *     forward_local -> the caller gathers the ranks' records, in rank order -> forward_finish        backward likewise
 *
 * Between the halves stands a rank's record alone, whose length does not change from call to call. It begins with a head
 * of `head` bytes. First halves of several ranks do not fail: what is wrong on a rank is told in its record, and the
 * second half fails with it on every rank. Where nothing is exchanged (one rank, inference) first halves do nothing and
 * records may be NULL. */
typedef struct allnorm_halves allnorm_halves;

/** A layer made ready for rank `rank` of `ranks`. `queue`: of the device that calls will be on. */
ALLNORM_API allnorm_status allnorm_halves_make(const char* layer, int64_t channels, int32_t rank, int32_t ranks,
                                               const char* name, allnorm_queue* queue, allnorm_halves** made);
/** Releases it. */
ALLNORM_API void allnorm_halves_free(allnorm_halves* halves);

/** fixed + each * G, with G the number of groups of the statistics: channels for batch_norm, (N, G) for group_norm ...
 * */
typedef struct allnorm_length {
  int64_t fixed; /**< whatever G is */
  int64_t each;  /**< for each group */
} allnorm_length;
/** What a caller must know to exchange and to make room. */
typedef struct allnorm_halves_sizes {
  int64_t exchanges;              /**< 1: there is something to exchange */
  int64_t of_channels;            /**< 1: G is the number of channels */
  int64_t keeps_running;          /**< 1: running statistics of channels; 2: running_std, not running_var */
  int64_t gates;                  /**< 1: with a residual there is a mask */
  int64_t head;                   /**< bytes */
  allnorm_length forward_record;  /**< bytes, a multiple of 8 */
  allnorm_length backward_record; /**< likewise */
  allnorm_length frame;           /**< doubles: arrays of G, then the count of values and the call's number */
  int64_t r;   /**< which array of the frame, after 0 mean, 1 var, 2 rstd, 3 share; or -1 */
  int64_t d;   /**< likewise */
  int64_t std; /**< likewise */
} allnorm_halves_sizes;
/** What of it does not depend on a call. */
ALLNORM_API allnorm_status allnorm_halves_sizes_of(const allnorm_halves* halves, allnorm_halves_sizes* sizes);
/** G for an input of that shape. */
ALLNORM_API allnorm_status allnorm_halves_groups(const allnorm_halves* halves, const int64_t* input_shape,
                                                 int32_t input_rank, int64_t* groups);
/** Bytes of `work` that calls with such inputs need. */
ALLNORM_API allnorm_status allnorm_halves_work(const allnorm_halves* halves, const allnorm_tensor* inputs,
                                               size_t input_count, int64_t* bytes);

/** A layer with a window or mini-batches keeps a history: plain bytes, whose copy is a copy of it. Its bytes are 0 for
 * other layers. `conv_weight` (its shape is looked at) is given for a window that compensates, NULL otherwise; `wide`:
 * the derivatives are kept in f64, as where input or weight are. */
ALLNORM_API allnorm_status allnorm_halves_history(const allnorm_halves* halves, const allnorm_tensor* conv_weight,
                                                  int32_t wide, int64_t* bytes);
/** Makes the history of a fresh layer in `bytes` of the queue's device. */
ALLNORM_API allnorm_status allnorm_halves_start(const allnorm_halves* halves, const allnorm_tensor* conv_weight,
                                                int32_t wide, void* history, int64_t bytes, allnorm_queue* queue);
/** Of a history in the host's memory: 1 where its window has entries or a batch is open. */
ALLNORM_API allnorm_status allnorm_halves_has_entries(const allnorm_halves* halves, const void* history, int64_t bytes,
                                                      int32_t* has);

/** The memory of a call, on the queue's device and aligned to 8; what a function does not need may be NULL. */
typedef struct allnorm_memory {
  void* work;    /**< contents are lost */
  double* frame; /**< written by forward_finish, read by replay and backward */
  uint8_t* mask; /**< with an activation and a residual: a bit for each value; likewise */
  void* record;  /**< written by first halves */
  const void* records;   /**< read by second halves: those of all ranks, one after the other */
  void* history;       /**< changed by forward_finish and begin_batch, as are the running statistics */
  int64_t history_bytes; /**< of it */
} allnorm_memory;

/** The first half of a forward call: the record. `inputs`: "input", what else the row lists for forward, and the state
 * that the caller keeps: "running_mean", "running_var" (or "running_std") and "num_batches_tracked", all or none of
 * them; but the last may be left out unless the momentum is cumulative: nothing is counted then, and every call is
 * number 0. */
ALLNORM_API allnorm_status allnorm_halves_forward_local(const allnorm_halves* halves, const allnorm_tensor* inputs,
                                                        size_t input_count, const allnorm_memory* memory,
                                                        allnorm_queue* queue);
/** The second half: output, frame, mask, and the next state. `inputs` as in the first. */
ALLNORM_API allnorm_status allnorm_halves_forward_finish(const allnorm_halves* halves, const allnorm_tensor* inputs,
                                                         size_t input_count, const allnorm_tensor* output,
                                                         const allnorm_memory* memory, allnorm_queue* queue);
/** The output again from an earlier call's frame and mask: no exchange, no change of state. */
ALLNORM_API allnorm_status allnorm_halves_replay(const allnorm_halves* halves, const allnorm_tensor* inputs,
                                                 size_t input_count, const allnorm_tensor* output,
                                                 const allnorm_memory* memory, allnorm_queue* queue);
/** The first half of a backward call. `inputs`: those of forward (of a residual only whether it is there is looked at),
 * "grad_output" and gradients by statistics; `gradients` what is asked for. The first half writes those of parameters,
 * the second the others; where nothing is exchanged the second writes all. */
ALLNORM_API allnorm_status allnorm_halves_backward_local(const allnorm_halves* halves, const allnorm_tensor* inputs,
                                                         size_t input_count, const allnorm_tensor* gradients,
                                                         size_t gradient_count, const allnorm_memory* memory,
                                                         allnorm_queue* queue);
/** The second half, with the same tensors. */
ALLNORM_API allnorm_status allnorm_halves_backward_finish(const allnorm_halves* halves, const allnorm_tensor* inputs,
                                                          size_t input_count, const allnorm_tensor* gradients,
                                                          size_t gradient_count, const allnorm_memory* memory,
                                                          allnorm_queue* queue);
/** Ends a batch of mini-batches before it is complete. `state`: the running statistics. */
ALLNORM_API allnorm_status allnorm_halves_begin_batch(const allnorm_halves* halves, const allnorm_tensor* state,
                                                      size_t state_count, const allnorm_memory* memory,
                                                      allnorm_queue* queue);
/** In place of a first half that this rank cannot make: the record says why. `direction`: 0 forward, 1 backward. */
ALLNORM_API allnorm_status allnorm_halves_decline(const allnorm_halves* halves, int32_t direction, const char* reason,
                                                  const allnorm_memory* memory, allnorm_queue* queue);
/** Fails with what the ranks' heads say: heads alone or of records, `stride` bytes apart in the host's memory. */
ALLNORM_API allnorm_status allnorm_halves_check_heads(const allnorm_halves* halves, const void* heads, int64_t stride);

/** As allnorm_save, of what the caller keeps. */
ALLNORM_API allnorm_status allnorm_halves_save(const allnorm_halves* halves, const allnorm_tensor* state,
                                               size_t state_count, const allnorm_memory* memory, allnorm_queue* queue,
                                               allnorm_state** made);
/** As allnorm_load, into what the caller keeps. */
ALLNORM_API allnorm_status allnorm_halves_load(const allnorm_halves* halves, const allnorm_tensor* entries,
                                               const int32_t* per_rank, size_t count, int32_t drop_window,
                                               const allnorm_tensor* state, size_t state_count,
                                               const allnorm_memory* memory, allnorm_queue* queue);

#ifdef __cplusplus
}
#endif
#endif
