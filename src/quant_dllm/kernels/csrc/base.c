/* The C interface: which units this processor runs, packing, and the loop over tokens and rows. */
#include <string.h>

#include "layout.h"

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

#define TILE 32                   /* tokens whose tables are built together, a thread, at least */
#define SHARED_TILE 128           /* the same where all threads share the tables */
#define PANEL_BYTES (192 << 10)   /* weights of a chunk that stay in a second-level cache */
#define WORK_OF_A_THREAD 1000000  /* plane-products that are worth waking a thread for */
#define MOST_THREADS 256

static const qd_unit *const units[] = {
#if defined(__x86_64__)
#ifndef QD_NO_AMX
    &qd_amx,
#endif
    &qd_avx512, &qd_avx2,
#endif
#if defined(__aarch64__) || defined(QD_EMULATE_NEON)
    &qd_neon,
#endif
    &qd_generic,
};
#define UNITS ((int)(sizeof units / sizeof *units))

int qd_abi(void) { return QD_ABI; }

const qd_unit *qd_unit_at(int index) {
    return index >= 0 && index < UNITS ? units[index] : NULL;
}

/* Names of the units, best first; NULL behind the last. */
const char *qd_unit_name(int index) {
    const qd_unit *unit = qd_unit_at(index);
    return unit ? unit->name : NULL;
}

/* The instruction that this processor lacks for a unit; NULL where it lacks none. */
const char *qd_unit_lacks(int index) { return units[index]->lacks(); }

/* Packing ------------------------------------------------------------------------------------ */

/* Count the bytes of a packed weight; a negative error code where there is none. */
int64_t qd_packed_bytes(int unit, const uint8_t *orders, int64_t blocks, int64_t in_features,
                        int64_t out_features, int64_t block_size) {
    qd_packed p;
    if (!qd_unit_at(unit)) return -QD_NO_UNIT;
    int error = qd_lay_out(&p, units[unit], orders, blocks, in_features, out_features, block_size);
    return error ? -error : (int64_t)p.bytes;
}

int qd_pack(int unit, void *packed, int64_t bytes, uint8_t *planes, uint16_t *row_scales,
            uint16_t *column_scales, uint8_t *orders, int64_t blocks, int64_t in_features,
            int64_t out_features, int64_t block_size, int threads) {
    qd_packed p;
    if (!qd_unit_at(unit)) return QD_NO_UNIT;
    int error = qd_lay_out(&p, units[unit], orders, blocks, in_features, out_features, block_size);
    if (error) return error;
    if (bytes < (int64_t)p.bytes) return QD_SMALL_BUFFER;
    memcpy(packed, &p, sizeof p);
    qd_fill(packed, &(qd_neutral){planes, row_scales, column_scales, orders}, threads);
    return QD_OK;
}

static int is_packed(const qd_packed *p) { return p->magic == QD_MAGIC && p->abi == QD_ABI; }

int qd_unpack(const void *packed, uint8_t *planes, uint16_t *row_scales, uint16_t *column_scales,
              uint8_t *orders, int threads) {
    if (!is_packed(packed)) return QD_BAD_PACKED;
    qd_restore(packed, &(qd_neutral){planes, row_scales, column_scales, orders}, threads);
    return QD_OK;
}

/* Multiplying -------------------------------------------------------------------------------- */

typedef struct {
    const qd_packed *p;
    const qd_unit *unit;
    const char *x;
    char *y;
    const char *bias;
    enum qd_dtype dtype;
    size_t item; /* bytes of a number of x, y and bias */
    int precise;
} call;

/* Tables (all high digits, then all low ones), their scales and the sums of one set of tokens. */
typedef struct {
    uint8_t *tables, *has_low;
    size_t low;
    float *scales, *sums;
} room;

static size_t round_up(size_t value) { return (value + 63) / 64 * 64; }

static size_t digit_room(const qd_packed *p, int tokens) {
    return round_up((size_t)tokens * p->channels * 4);
}

static size_t table_room(const qd_packed *p, int tokens) {
    return 2 * digit_room(p, tokens) + round_up((size_t)tokens * p->planes * sizeof(float))
         + round_up((size_t)tokens * p->segments);
}

static size_t sums_room(const qd_packed *p, int tokens) {
    return (size_t)tokens * p->chunk_tiles * QD_ROWS * sizeof(float);
}

static room room_at(const qd_packed *p, uint8_t *at, int tokens) {
    room r = {.tables = at, .low = digit_room(p, tokens)};
    at += 2 * r.low;
    r.scales = (float *)at;
    r.has_low = at + round_up((size_t)tokens * p->planes * sizeof(float));
    r.sums = (float *)(r.has_low + round_up((size_t)tokens * p->segments));
    return r;
}

/* Length of the block of tokens that begins at `token`: full ones, then what is left. */
static int block_length(int token, int tokens, const qd_unit *unit) {
    int left = tokens - token, full = unit->block;
    if (unit->ragged && left >= unit->ragged) return left < unit->most ? left : unit->most;
    while (full > left) full /= 2;
    return full;
}

/* Tokens whose tables are built together. */
static int tile_of(const qd_unit *unit, int64_t tokens, int shared) {
    int most = unit->most ? unit->most : shared ? SHARED_TILE : TILE;
    return tokens < most ? (int)tokens : most;
}

/* Build the tables of one segment for all tokens of a set. */
static void build(const call *c, const room *r, int64_t first, int tokens, uint32_t segment) {
    const qd_packed *p = c->p;
    const qd_segment *s = qd_segments(p) + segment;
    const float *columns = (const float *)((const uint8_t *)p + p->columns) + s->channels;
    for (int at = 0, n; at < tokens; at += n) {
        n = block_length(at, tokens, c->unit);
        const char *x = c->x + ((size_t)(first + at) * p->in_features + s->start) * c->item;
        r->has_low[at * p->segments + segment] = (uint8_t)c->unit->tables(
            s, columns, x, c->dtype, p->in_features, n, c->precise,
            r->tables + (at * p->channels + n * s->channels) * 4, r->low,
            r->scales + (size_t)at * p->planes + (size_t)n * s->plane);
    }
}

/* Multiply one chunk: panel after panel of segments, so that its weights stay in cache while all
 * blocks of tokens pass over them. */
static void multiply(const call *c, const room *r, int tokens, const uint8_t *chunk, int tiles) {
    const qd_packed *p = c->p;
    memset(r->sums, 0, (size_t)tokens * tiles * QD_ROWS * sizeof(float));
    for (uint32_t i = 0, end; i < p->segments; i = end) {
        const qd_segment *s = qd_segments(p) + i;
        size_t bytes = 0;
        for (end = i; end < p->segments && (end == i || bytes < PANEL_BYTES); end++)
            bytes += qd_tile_bytes(qd_segments(p) + end) * tiles;
        for (int at = 0, n; at < tokens; at += n) {
            n = block_length(at, tokens, c->unit);
            qd_span span = {
                .segments = s, .count = (int)(end - i), .tiles = tiles, .tokens = n,
                .weights = chunk, .low = r->low,
                .tables = r->tables + (at * p->channels + n * s->channels) * 4,
                .has_low = r->has_low + at * p->segments + i,
                .scales = r->scales + (size_t)at * p->planes + (size_t)n * s->plane,
                .columns = (const float *)((const uint8_t *)p + p->columns),
                .sums = r->sums + (size_t)at * tiles * QD_ROWS};
            c->unit->multiply(&span);
        }
        chunk += bytes;
    }
}

static void store(const call *c, const room *r, int64_t first, int tokens, uint32_t row,
                  int tiles) {
    uint32_t end = row + tiles * QD_ROWS;
    if (end > c->p->out_features) end = c->p->out_features;
    for (int at = 0, n; at < tokens; at += n) {
        n = block_length(at, tokens, c->unit);
        for (int m = 0; m < n; m++) {
            const float *sums = r->sums + ((size_t)at * tiles + m) * QD_ROWS;
            char *y = c->y + (size_t)(first + at + m) * c->p->out_features * c->item;
            for (uint32_t from = row; from < end; from += QD_ROWS, sums += n * QD_ROWS)
                c->unit->store(sums, c->bias ? c->bias + from * c->item : NULL,
                               end - from < QD_ROWS ? (int)(end - from) : QD_ROWS, c->dtype,
                               y + from * c->item);
        }
    }
}

static uint32_t chunks_of(const qd_packed *p) {
    uint32_t span = p->chunk_tiles * QD_ROWS;
    return (p->out_features + span - 1) / span;
}

static void run_chunk(const call *c, const room *r, int64_t first, int tokens, uint32_t chunk) {
    const qd_packed *p = c->p;
    uint32_t tile = chunk * p->chunk_tiles, all = (p->out_features + QD_ROWS - 1) / QD_ROWS;
    int tiles = (int)(all - tile < p->chunk_tiles ? all - tile : p->chunk_tiles);
    const uint8_t *weights = (const uint8_t *)p + p->chunks + tile * p->tile_bytes;
    multiply(c, r, tokens, weights, tiles);
    store(c, r, first, tokens, tile * QD_ROWS, tiles);
}

/* Many tokens: every thread takes some of them and all of the weight; nobody waits. */
static void run_apart(const call *c, int64_t tokens, uint8_t *workspace, int threads) {
    int most = tile_of(c->unit, tokens, 0);
    size_t share = table_room(c->p, most) + sums_room(c->p, most);
    int64_t few = c->unit->most || c->unit->block > 16 ? 16 : c->unit->block;
    int64_t each = ((tokens + threads - 1) / threads + few - 1) / few * few;
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int t = 0; t < threads; t++) {
        int64_t end = each * (t + 1) < tokens ? each * (t + 1) : tokens;
        for (int64_t at = each * t; at < end; at += most) {
            int some = (int)(end - at < most ? end - at : most);
            room r = room_at(c->p, workspace + t * share, some);
            for (uint32_t s = 0; s < c->p->segments; s++) build(c, &r, at, some, s);
            for (uint32_t i = 0; i < chunks_of(c->p); i++) run_chunk(c, &r, at, some, i);
        }
    }
}

/* Few tokens: the threads share the tables and take chunks of rows; two barriers. */
static void run_together(const call *c, int64_t tokens, uint8_t *workspace, int threads) {
    int most = tile_of(c->unit, tokens, 1);
    uint8_t *sums = workspace + table_room(c->p, most);
#pragma omp parallel num_threads(threads)
    for (int64_t at = 0; at < tokens; at += most) {
        int some = (int)(tokens - at < most ? tokens - at : most);
        room r = room_at(c->p, workspace, some);
        r.sums = (float *)(sums + THREAD * sums_room(c->p, most));
        if (at) {
#pragma omp barrier
        }
#pragma omp for schedule(static)
        for (uint32_t s = 0; s < c->p->segments; s++) build(c, &r, at, some, s);
#pragma omp for schedule(dynamic, 1) nowait
        for (uint32_t i = 0; i < chunks_of(c->p); i++) run_chunk(c, &r, at, some, i);
    }
}

static int useful_threads(const qd_packed *p, int64_t tokens, int threads) {
    double work = (double)p->channels * p->out_features * tokens / WORK_OF_A_THREAD;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    return work < threads ? (work < 1 ? 1 : (int)work) : threads < 1 ? 1 : threads;
}

static int apart(const qd_unit *unit, int64_t tokens, int threads) {
    return threads == 1 || tokens >= (int64_t)tile_of(unit, INT64_MAX, 0) * threads;
}

static size_t whole_room(const qd_packed *p, const qd_unit *unit, int64_t tokens, int threads) {
    int alone = apart(unit, tokens, threads), most = tile_of(unit, tokens, !alone);
    return (alone ? threads : 1) * table_room(p, most) + threads * sums_room(p, most);
}

/* Count the bytes of workspace that `qd_linear` wants; no more for many tokens than for some. */
int64_t qd_workspace(const void *packed, int unit, int64_t tokens, int threads) {
    const qd_packed *p = packed;
    const qd_unit *with = qd_unit_at(unit);
    if (!is_packed(p)) return -QD_BAD_PACKED;
    if (!with) return -QD_NO_UNIT;
    threads = useful_threads(p, tokens, threads);
    size_t room = whole_room(p, with, tokens, threads);
    size_t other = with->precise ? whole_room(p, with->precise, tokens, threads) : 0;
    return (int64_t)(room > other ? room : other);
}

/* The best unit of this processor that reads a layout. */
const qd_unit *qd_unit_for(const qd_packed *p) {
    for (int i = 0; i < UNITS; i++)
        if (units[i]->layout == p->layout && !units[i]->lacks()) return units[i];
    return NULL;
}

/* Compute y = x W^T + bias; x [tokens, in], y [tokens, out] and bias (or NULL) are of one dtype. */
int qd_linear(const void *packed, int unit, const void *x, const void *bias, void *y,
              int64_t tokens, int dtype, int precise, void *workspace, int64_t bytes,
              int threads) {
    const qd_packed *p = packed;
    if (!is_packed(p)) return QD_BAD_PACKED;
    if (tokens < 0 || dtype < QD_FLOAT32 || dtype > QD_FLOAT16) return QD_BAD_ARGUMENT;
    const qd_unit *with = qd_unit_at(unit);
    if (!with || with->layout != p->layout || with->lacks()) return QD_NO_UNIT;
    if (bytes < qd_workspace(p, unit, tokens, threads)) return QD_SMALL_BUFFER;
    int thin = 8 * p->channels <= (uint64_t)with->thin * p->in_features;
    if (with->precise && (precise || thin)) with = with->precise;
    if (!tokens) return QD_OK;
    call c = {.p = p, .unit = with, .x = x, .y = y, .bias = bias, .dtype = (enum qd_dtype)dtype,
              .item = dtype == QD_FLOAT32 ? 4 : 2, .precise = precise};
    threads = useful_threads(p, tokens, threads);
    (apart(with, tokens, threads) ? run_apart : run_together)(&c, tokens, workspace, threads);
    return QD_OK;
}
