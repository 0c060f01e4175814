/* Sum and sum of squares of many runs of values, each run read once, on the threads of torch's own pool. */

#include "native.h"

#define LANES 16
#define VECTORS 4
/* Values that are summed in single precision before they go on in double. */
#define BLOCK 2048
/* Values that a thread takes at once, about. */
#define SHARE 65536

typedef struct {
    const float *x;    /* [runs, length] */
    double *sums;      /* [runs] */
    double *squares;   /* [runs] */
    int64_t runs, length;
    atomic_llong next; /* the share that nobody has taken yet */
} moments;

/* gcc vectorises sums only where it may reorder them, so the order is written down. */
typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

ON_EVERY_PROCESSOR
static void sum_run(const float *x, int64_t length, double *sum_out, double *squares_out)
{
    double sum = 0.0, squares = 0.0;
    int64_t i = 0;
    while (length - i >= LANES) {
        lanes s[VECTORS] = {{0}}, q[VECTORS] = {{0}};
        const int64_t stop = i + BLOCK < length ? i + BLOCK : length;
        for (; i + VECTORS * LANES <= stop; i += VECTORS * LANES)
            for (int k = 0; k < VECTORS; k++) {
                const lanes v = *(const lanes *)(x + i + k * LANES);
                s[k] += v;
                q[k] += v * v;
            }
        for (; i + LANES <= stop; i += LANES) {
            const lanes v = *(const lanes *)(x + i);
            s[0] += v;
            q[0] += v * v;
        }
        const lanes all = (s[0] + s[1]) + (s[2] + s[3]), all_squares = (q[0] + q[1]) + (q[2] + q[3]);
        for (int k = 0; k < LANES; k++) {
            sum += all[k];
            squares += all_squares[k];
        }
    }
    for (; i < length; i++) {
        sum += x[i];
        squares += (double)x[i] * x[i];
    }
    *sum_out = sum;
    *squares_out = squares;
}

/* What each thread runs. */
void nabn_sum_runs(moments *job)
{
    const int64_t runs = job->length < SHARE ? SHARE / job->length : 1;
    const int64_t shares = (job->runs + runs - 1) / runs;
    for (int64_t share; (share = atomic_fetch_add(&job->next, 1)) < shares;) {
        const int64_t end = (share + 1) * runs < job->runs ? (share + 1) * runs : job->runs;
        for (int64_t run = share * runs; run < end; run++)
            sum_run(job->x + run * job->length, job->length, job->sums + run, job->squares + run);
    }
}

int64_t nabn_sum_runs_size(void) { return sizeof(moments); }
