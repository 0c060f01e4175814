/* Mean and sum of squared deviations of each channel, each value read once, on the threads of torch's own pool. */

#include "native.h"

/* Eight sums and a load at once are what the sixteen registers of AVX2 hold. */
#define LANES 8
#define VECTORS 4
/* Values that are summed in single precision before they go on in double. */
#define BLOCK 2048

typedef struct {
    const float *x;    /* [batch, channels, length] */
    double *mean, *m2; /* [channels] */
    int64_t batch, channels, length;
    double cancellation; /* largest mean^2 / variance whose squares are taken around 0 */
    atomic_llong next;   /* the channel that nobody has taken yet */
} moments;

/* gcc vectorises sums only where it may reorder them, so the order is written down. */
typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

ON_EVERY_PROCESSOR
static void sum_run(const float *x, int64_t length, float centre, double *sum_out, double *squares_out)
{
    double sum = 0.0, squares = 0.0;
    int64_t i = 0;
    while (length - i >= LANES) {
        lanes s[VECTORS] = {{0}}, q[VECTORS] = {{0}};
        const int64_t stop = i + BLOCK < length ? i + BLOCK : length;
        for (; i + VECTORS * LANES <= stop; i += VECTORS * LANES)
            for (int k = 0; k < VECTORS; k++) {
                const lanes v = *(const lanes *)(x + i + k * LANES) - centre;
                s[k] += v;
                q[k] += v * v;
            }
        for (; i + LANES <= stop; i += LANES) {
            const lanes v = *(const lanes *)(x + i) - centre;
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
        const double v = x[i] - centre;
        sum += v;
        squares += v * v;
    }
    *sum_out += sum;
    *squares_out += squares;
}

static void sum_channel(const moments *job, int64_t channel, float centre, double *mean, double *m2)
{
    double sum = 0.0, squares = 0.0;
    for (int64_t b = 0; b < job->batch; b++)
        sum_run(job->x + (b * job->channels + channel) * job->length, job->length, centre, &sum, &squares);
    const double count = (double)job->batch * job->length;
    *mean = sum / count;
    *m2 = squares - sum * *mean;
}

/* What each thread runs. */
void nabn_moments(moments *job)
{
    for (int64_t c; (c = atomic_fetch_add(&job->next, 1)) < job->channels;) {
        const double count = (double)job->batch * job->length;
        double mean, m2, shift = 0.0;
        sum_channel(job, c, 0.0f, &mean, &m2);
        if (count * mean * mean > job->cancellation * m2) {
            /* What the centre lost in rounding comes back as the mean of what is left. */
            const float centre = (float)mean;
            sum_channel(job, c, centre, &shift, &m2);
            mean = centre + shift;
        }
        job->mean[c] = mean;
        job->m2[c] = m2 < 0.0 ? 0.0 : m2;
    }
}

int64_t nabn_moments_size(void) { return sizeof(moments); }
