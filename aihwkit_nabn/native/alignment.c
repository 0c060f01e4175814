/* Scale, offset and input gain of each channel in one pass, in place, on the threads of torch's own pool. */

#include <stddef.h>

#include "native.h"

/* Values that a thread takes at once, about; the same in alignment.py. */
#define SHARE 65536

typedef struct {
    float *y;            /* [batch, channels, length], overwritten */
    const float *scale;  /* [channels] */
    const float *offset; /* [channels] */
    const float *gain;   /* [channels], or NULL */
    const float *mean;   /* [batch, groups, length], or NULL */
    int64_t batch, channels, groups, length;
    atomic_llong next;   /* the share that nobody has taken yet */
} alignment;

ON_EVERY_PROCESSOR
static void align_run(float *restrict y, int64_t n, float scale, float offset, float gain, const float *restrict mean)
{
    if (mean)
        for (int64_t i = 0; i < n; i++)
            y[i] = y[i] * scale + offset + gain * mean[i];
    else
        for (int64_t i = 0; i < n; i++)
            y[i] = y[i] * scale + offset;
}

/* What each thread runs. */
void nabn_align(alignment *job)
{
    const int64_t all = job->batch * job->channels, runs = job->length < SHARE ? SHARE / job->length : 1;
    const int64_t shares = (all + runs - 1) / runs;
    for (int64_t share; (share = atomic_fetch_add(&job->next, 1)) < shares;) {
        const int64_t end = (share + 1) * runs < all ? (share + 1) * runs : all;
        for (int64_t run = share * runs; run < end; run++) {
            const int64_t channel = run % job->channels;
            const float *mean = NULL;
            if (job->mean) {
                const int64_t group = channel / (job->channels / job->groups);
                mean = job->mean + (run / job->channels * job->groups + group) * job->length;
            }
            align_run(job->y + run * job->length, job->length, job->scale[channel], job->offset[channel],
                      job->gain ? job->gain[channel] : 0.0f, mean);
        }
    }
}

int64_t nabn_align_size(void) { return sizeof(alignment); }
