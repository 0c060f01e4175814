/* Both converters in one pass each, on the threads of torch's own pool: inputs to levels of the DAC; results to digital
   values (draw, add, round, cut off, scale).

   The same arithmetic, number by number, as simulator/product/physics does with torch; plain C, called through
   ctypes. */

#include <math.h>
#include <string.h>

#include "native.h"

/* Numbers of one generator, a multiple of 4; simulator/product/numbers.py has the same. */
#define CHUNK 65536
#define BUFFER 1024

/* One value for all outputs, one per row, or one per column. */
typedef struct {
    const float *values; /* NULL: `value` for all */
    float value;
    int32_t by_column;
} factor;

typedef struct {
    float *y;              /* [rows, columns], analog results in, digital values out where there is no total */
    float *total;          /* [rows, columns], or NULL */
    const float *variance; /* [rows, columns], of the read noise, or NULL */
    const float *current;  /* [rows, columns], with `drop` and `ir_drop` as in product/physics/ir_drop.py, or NULL */
    const float *drop;
    const float *table;    /* [65536] normal quantiles; NULL: nothing is drawn */
    int64_t rows, columns;
    factor noise, gain, bias;
    uint64_t key[2];     /* of the generators */
    uint64_t first;      /* number of the first generator */
    float ir_drop;
    float bound;         /* largest level */
    int32_t rounds;      /* whether there are levels */
    atomic_llong next;   /* the chunk that nobody has taken yet */
} readout;

typedef struct {
    uint64_t a, b, c, counter;
} generator;

static inline uint64_t draw(generator *g) /* SFC64, Doty-Humphrey, as in numpy */
{
    const uint64_t result = g->a + g->b + g->counter++;
    g->a = g->b ^ (g->b >> 11);
    g->b = g->c + (g->c << 3);
    g->c = ((g->c << 24) | (g->c >> 40)) + result;
    return result;
}

static generator seeded(const readout *job, uint64_t chunk)
{
    generator g = {job->key[0], job->key[1], job->first + chunk, 1};
    for (int i = 0; i < 12; i++)
        draw(&g);
    return g;
}

static inline float at(const factor *f, int64_t row, int64_t column)
{
    return f->values ? f->values[f->by_column ? column : row] : f->value;
}

/* A piece of one row, `random` its normal numbers. */
ON_EVERY_PROCESSOR
static void read_piece(const readout *job, int64_t row, int64_t column, int64_t n, const float *restrict random)
{
    const int64_t start = row * job->columns + column;
    float *restrict y = job->y + start;
    float level[BUFFER];
    memcpy(level, y, n * sizeof(float));
    if (job->current) {
        const float *current = job->current + start, *drop = job->drop + start, ir_drop = job->ir_drop;
        for (int64_t i = 0; i < n; i++) {
            const float c = current[i];
            level[i] -= ir_drop * (c * (c * (0.05f * c - 0.2f) + 0.5f)) * drop[i];
        }
    }
    if (random) {
        const float own = at(&job->noise, row, column);
        const float *each = job->noise.values && job->noise.by_column ? job->noise.values + column : NULL;
        if (job->variance) {
            const float *variance = job->variance + start;
            for (int64_t i = 0; i < n; i++) {
                const float o = each ? each[i] : own;
                level[i] += random[i] * sqrtf(variance[i] + o * o);
            }
        } else if (each) {
            for (int64_t i = 0; i < n; i++)
                level[i] += random[i] * each[i];
        } else {
            for (int64_t i = 0; i < n; i++)
                level[i] += random[i] * own;
        }
    }
    if (job->rounds)
        for (int64_t i = 0; i < n; i++)
            level[i] = rintf(level[i]);
    if (isfinite(job->bound)) {
        const float high = job->bound, low = -high;
        for (int64_t i = 0; i < n; i++) {
            const float v = level[i] < low ? low : level[i];
            level[i] = v > high ? high : v;
        }
    }
    const float gain = at(&job->gain, row, column), bias = at(&job->bias, row, column);
    const float *gains = job->gain.values && job->gain.by_column ? job->gain.values + column : NULL;
    const float *biases = job->bias.values && job->bias.by_column ? job->bias.values + column : NULL;
    if (job->total) {
        float *restrict total = job->total + start;
        if (gains)
            for (int64_t i = 0; i < n; i++)
                total[i] += level[i] * gains[i];
        else
            for (int64_t i = 0; i < n; i++)
                total[i] += level[i] * gain;
    } else if (gains || biases) {
        for (int64_t i = 0; i < n; i++)
            y[i] = level[i] * (gains ? gains[i] : gain) + (biases ? biases[i] : bias);
    } else {
        for (int64_t i = 0; i < n; i++)
            y[i] = level[i] * gain + bias;
    }
}

ON_EVERY_PROCESSOR
static void look_up(const float *restrict table, const uint16_t *restrict words, float *restrict out)
{
    for (int i = 0; i < BUFFER; i++)
        out[i] = table[words[i]];
}

static void read_chunk(const readout *job, int64_t chunk)
{
    const int64_t size = job->rows * job->columns;
    int64_t here = chunk * CHUNK;
    const int64_t end = here + CHUNK < size ? here + CHUNK : size;
    generator g = seeded(job, (uint64_t)chunk);
    uint64_t bits[BUFFER / 4];
    uint16_t words[BUFFER];
    float random[BUFFER];
    while (here < end) {
        const int64_t stop = here + BUFFER < end ? here + BUFFER : end;
        if (job->table) {
            for (int i = 0; i < BUFFER / 4; i++)
                bits[i] = draw(&g);
            memcpy(words, bits, sizeof words);
            look_up(job->table, words, random);
        }
        for (int64_t at_ = here; at_ < stop;) {
            const int64_t row = at_ / job->columns, column = at_ % job->columns;
            const int64_t left = job->columns - column;
            const int64_t n = left < stop - at_ ? left : stop - at_;
            read_piece(job, row, column, n, job->table ? random + (at_ - here) : NULL);
            at_ += n;
        }
        here = stop;
    }
}

/* What each thread runs to read results out. */
void nabn_read_out(readout *job)
{
    const int64_t chunks = (job->rows * job->columns + CHUNK - 1) / CHUNK;
    for (int64_t chunk; (chunk = atomic_fetch_add(&job->next, 1)) < chunks;)
        read_chunk(job, chunk);
}

typedef struct {
    const float *x; /* [rows, columns], rows `stride` apart */
    float *out;     /* [rows, columns] */
    int64_t rows, columns, stride;
    float range;    /* what inputs are divided by; 0: nothing */
    float factor;   /* and then multiplied with */
    float step;     /* between two levels; 0: nothing is rounded */
    float bound;    /* largest level */
    int32_t cuts;   /* whether inputs are cut off at their range first */
    atomic_llong next;
} conversion;

ON_EVERY_PROCESSOR
static void convert_piece(const conversion *job, const float *restrict x, float *restrict out, int64_t n)
{
    const float range = job->range, factor = job->factor, step = job->step;
    if (job->cuts)
        for (int64_t i = 0; i < n; i++) {
            const float v = x[i] < -range ? -range : x[i];
            out[i] = (v > range ? range : v) / range;
        }
    else if (range != 0.0f)
        for (int64_t i = 0; i < n; i++)
            out[i] = x[i] / range;
    else
        memcpy(out, x, n * sizeof(float));
    if (factor != 1.0f)
        for (int64_t i = 0; i < n; i++)
            out[i] *= factor;
    if (step != 0.0f)
        for (int64_t i = 0; i < n; i++)
            out[i] = rintf(out[i] / step);
    if (isfinite(job->bound)) {
        const float high = job->bound, low = -high;
        for (int64_t i = 0; i < n; i++) {
            const float v = out[i] < low ? low : out[i];
            out[i] = v > high ? high : v;
        }
    }
}

/* What each thread runs to turn inputs into levels. */
void nabn_to_levels(conversion *job)
{
    const int64_t size = job->rows * job->columns, chunks = (size + CHUNK - 1) / CHUNK;
    for (int64_t chunk; (chunk = atomic_fetch_add(&job->next, 1)) < chunks;) {
        const int64_t end = (chunk + 1) * CHUNK < size ? (chunk + 1) * CHUNK : size;
        for (int64_t here = chunk * CHUNK; here < end;) {
            const int64_t row = here / job->columns, column = here % job->columns;
            int64_t n = job->columns - column;
            n = n < end - here ? n : end - here;
            n = n < BUFFER ? n : BUFFER;
            convert_piece(job, job->x + row * job->stride + column, job->out + here, n);
            here += n;
        }
    }
}

int64_t nabn_read_out_size(void) { return sizeof(readout); }

int64_t nabn_to_levels_size(void) { return sizeof(conversion); }
