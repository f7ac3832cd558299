/* AMX: products of 16 tokens with 16 rows, over 32 channels in bfloat16, summed in float32.
 *
 * The planes of a tile of rows are summed up in registers, once for all tokens of a block, and their
 * sums written as the tiles of a dense weight in bfloat16, which stay in the first two caches. Few
 * tokens do not pay for that: they go to the AVX-512 unit, whose layout this is.
 *
 * A pair of a tile is (channel c, channel c + 16) of 32: then the sign bits of both are in the same
 * place of the two halves of a word.
 *
 * "Tables": [token][channels of the segment] of bfloat16 in that order; there is no low digit.
 */
#include "avx512.h"

#include <string.h>

#define LEAST 12              /* tokens that pay for dense tiles */
#define TOKENS 16             /* of a tile */
#define DEPTH 32              /* channels of a tile */
#define TILE_BYTES 1024
#define GROUP 2               /* segments that are expanded together */
#define STEPS (GROUP * QD_SEGMENT / DEPTH)
#define AHEAD 1536            /* bytes that the weights are fetched ahead where memory is waited for */
#define FEW 64                /* tokens that leave memory to be waited for */
#define MEAN 1.00141f         /* mean of a number over what its bfloat16 is when cut off */

/* Tiles: sums of two times 16 tokens and the two halves of the rows, inputs, weights. */
enum { SUM_00, SUM_01, SUM_10, SUM_11, INPUT_0, INPUT_1, WEIGHT_0, WEIGHT_1 };

#ifndef QD_SIMDE
/* The compiler does not know that tiles read and write memory unless it is told. */
#define TILE(instruction, ...) __asm__ volatile(instruction __VA_ARGS__ : "memory")
#define tile_configure(c) TILE("ldtilecfg %0", ::"m"(*(c)))
#define tile_release() TILE("tilerelease", ::)
#define tile_zero(t) TILE("tilezero %%tmm%c0", ::"i"(t))
#define tile_load(t, from, stride) \
    TILE("tileloadd (%1,%2,1), %%tmm%c0", ::"i"(t), "r"(from), "r"((size_t)(stride)))
#define tile_store(t, to, stride) \
    TILE("tilestored %%tmm%c0, (%1,%2,1)", ::"i"(t), "r"(to), "r"((size_t)(stride)))
#define tile_dot(sum, a, b) \
    TILE("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0", ::"i"(sum), "i"(a), "i"(b))

#include <cpuid.h>
#include <sys/syscall.h>

long syscall(long number, ...); /* unistd.h hides it from the C standard */

/* Ask the system for the tiles' registers, once. */
static const char *registers(void) {
    static int granted = -1;
#ifdef SYS_arch_prctl
    const int ask = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    if (granted < 0) granted = syscall(SYS_arch_prctl, ask, tile_data) == 0;
#endif
    return granted > 0 ? NULL : "AMX registers, which the system does not grant";
}

static const char *lacks(void) {
    unsigned a, b, c, d;
    const char *lack = qd_avx512.lacks();
    if (lack) return lack;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1)) return "AMX-TILE";
    return d >> 22 & 1 ? registers() : "AMX-BF16";
}
#else
static const char *lacks(void) { return NULL; }
#endif

/* Inputs ------------------------------------------------------------------------------------- */

INLINE __m512i pairs(__m512 low, __m512 high) {
    return _mm512_or_si512(_mm512_srli_epi32(upper_bfloat16(low), 16), upper_bfloat16(high));
}

static int tables(const qd_segment *s, const float *columns, const void *x, enum qd_dtype dtype,
                  size_t stride, int tokens, int precise, uint8_t *tables, size_t low,
                  float *scales) {
    if (tokens < LEAST)
        return qd_avx512.tables(s, columns, x, dtype, stride, tokens, precise, tables, low, scales);
    int width = (int)s->width;
    for (int m = 0; m < tokens; m++, x = (const char *)x + stride * (dtype == QD_FLOAT32 ? 4 : 2))
        for (int at = 0; at < (int)s->padded; at += DEPTH, tables += 64)
            _mm512_storeu_si512(tables, pairs(load16(x, dtype, at, width - at),
                                              load16(x, dtype, at + VECTOR, width - at - VECTOR)));
    return 0;
}

/* Products ----------------------------------------------------------------------------------- */

/* Sum the planes of 32 channels: [half of the rows][pair][row][channel of the pair]. What is cut off
 * beyond bfloat16 is half a unit in the mean, which `MEAN` gives back. */
INLINE void sum_planes(const qd_segment *s, const uint8_t *unit, const float *columns,
                       const int order, int word, int fetch, uint8_t *out) {
    const __m512i sign = _mm512_set1_epi32((int)0x80000000);
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    const size_t plane = QD_SCALE_BYTES + s->padded * (QD_ROWS / 8);
    for (int half = 0; half < 2; half++, out += TILE_BYTES) {
        __m512i a[QD_MOST_ORDER], high[QD_MOST_ORDER], low[QD_MOST_ORDER];
        UNROLL for (int k = 0; k < order; k++) {
            const uint8_t *signs = unit + k * plane + QD_SCALE_BYTES + word * 128 + half * 64;
            __m512 row = load16(unit + k * plane, QD_FLOAT16, half * VECTOR, VECTOR);
            a[k] = _mm512_castps_si512(_mm512_mul_ps(row, _mm512_set1_ps(-MEAN)));
            if (fetch) _mm_prefetch((const char *)signs + AHEAD, _MM_HINT_T0);
            high[k] = _mm512_loadu_si512(signs);
            low[k] = _mm512_slli_epi32(high[k], 16);
        }
        UNROLL for (int p = 0; p < 16; p++) {
            __m512 h = _mm512_setzero_ps(), l = h;
            UNROLL for (int k = 0; k < order; k++) {
                const float *c = columns + k * s->padded + word * DEPTH + p;
                __m512i bit = _mm512_slli_epi32(high[k], 15 - p);
                bit = _mm512_ternarylogic_epi32(a[k], bit, sign, 0x78); /* a bit of 1 is a plus */
                h = _mm512_fmadd_ps(_mm512_castsi512_ps(bit), _mm512_set1_ps(c[16]), h);
                bit = _mm512_slli_epi32(low[k], 15 - p);
                bit = _mm512_ternarylogic_epi32(a[k], bit, sign, 0x78);
                l = _mm512_fmadd_ps(_mm512_castsi512_ps(bit), _mm512_set1_ps(c[0]), l);
            }
            __m512i below = _mm512_srli_epi32(_mm512_castps_si512(l), 16);
            _mm512_storeu_si512(out + p * 64,
                                _mm512_ternarylogic_epi32(_mm512_castps_si512(h), below, upper,
                                                          0xe4)); /* upper ? h : below */
        }
    }
}

static void expand(const qd_segment *s, const uint8_t *unit, const float *columns, int fetch,
                   uint8_t (*out)[TILE_BYTES]) {
    for (int w = 0; w < (int)s->padded / DEPTH; w++)
        if (s->order == 1) sum_planes(s, unit, columns, 1, w, fetch, out[2 * w]);
        else if (s->order == 2) sum_planes(s, unit, columns, 2, w, fetch, out[2 * w]);
        else if (s->order == 3) sum_planes(s, unit, columns, 3, w, fetch, out[2 * w]);
        else sum_planes(s, unit, columns, (int)s->order, w, fetch, out[2 * w]);
}

/* Some segments of a tile, expanded, and their inputs. */
typedef struct {
    _Alignas(64) uint8_t weights[2 * STEPS][TILE_BYTES];
    int steps;
    const uint8_t *x[STEPS]; /* of the first token */
    size_t row[STEPS];       /* bytes of a token */
} group;

/* Multiply 17 to 32 tokens. */
INLINE void two_tiles(const group *g, int m, float *y) {
    float *y1 = y + TOKENS * QD_ROWS;
    tile_load(SUM_00, y, QD_ROWS * 4);
    tile_load(SUM_01, y + VECTOR, QD_ROWS * 4);
    tile_load(SUM_10, y1, QD_ROWS * 4);
    tile_load(SUM_11, y1 + VECTOR, QD_ROWS * 4);
    for (int i = 0; i < g->steps; i++) {
        const uint8_t *x = g->x[i] + m * g->row[i];
        tile_load(INPUT_0, x, g->row[i]);
        tile_load(WEIGHT_0, g->weights[2 * i], 64);
        tile_dot(SUM_00, INPUT_0, WEIGHT_0);
        tile_load(WEIGHT_1, g->weights[2 * i + 1], 64);
        tile_dot(SUM_01, INPUT_0, WEIGHT_1);
        tile_load(INPUT_1, x + TOKENS * g->row[i], g->row[i]);
        tile_dot(SUM_10, INPUT_1, WEIGHT_0);
        tile_dot(SUM_11, INPUT_1, WEIGHT_1);
    }
    tile_store(SUM_00, y, QD_ROWS * 4);
    tile_store(SUM_01, y + VECTOR, QD_ROWS * 4);
    tile_store(SUM_10, y1, QD_ROWS * 4);
    tile_store(SUM_11, y1 + VECTOR, QD_ROWS * 4);
}

/* Multiply up to 16 tokens. Each product waits for the last one of its sum: steps take turns with
 * two sums. */
INLINE void one_tile(const group *g, int m, float *y) {
    _Alignas(64) float other[TOKENS * QD_ROWS];
    tile_load(SUM_00, y, QD_ROWS * 4);
    tile_load(SUM_01, y + VECTOR, QD_ROWS * 4);
    tile_zero(SUM_10);
    tile_zero(SUM_11);
    for (int i = 0; i < g->steps; i++) {
        tile_load(INPUT_0, g->x[i] + m * g->row[i], g->row[i]);
        tile_load(WEIGHT_0, g->weights[2 * i], 64);
        tile_load(WEIGHT_1, g->weights[2 * i + 1], 64);
        if (i % 2) {
            tile_dot(SUM_10, INPUT_0, WEIGHT_0);
            tile_dot(SUM_11, INPUT_0, WEIGHT_1);
        } else {
            tile_dot(SUM_00, INPUT_0, WEIGHT_0);
            tile_dot(SUM_01, INPUT_0, WEIGHT_1);
        }
    }
    tile_store(SUM_00, y, QD_ROWS * 4);
    tile_store(SUM_01, y + VECTOR, QD_ROWS * 4);
    tile_store(SUM_10, other, QD_ROWS * 4);
    tile_store(SUM_11, other + VECTOR, QD_ROWS * 4);
    for (int i = 0; i < TOKENS * QD_ROWS; i += VECTOR)
        _mm512_storeu_ps(y + i, _mm512_add_ps(_mm512_loadu_ps(y + i), _mm512_loadu_ps(other + i)));
}

/* Multiply all tokens of a block; tiles that are not full have room beside the sums. */
static void all_tokens(const group *g, int tokens, float *y) {
    _Alignas(64) float beside[2 * TOKENS * QD_ROWS];
    for (int m = 0; m < tokens; m += 2 * TOKENS) {
        int left = tokens - m, full = left >= 2 * TOKENS || left == TOKENS;
        float *sums = full ? y + m * QD_ROWS : beside;
        size_t bytes = (size_t)left * QD_ROWS * sizeof(float);
        if (!full) memcpy(beside, y + m * QD_ROWS, bytes);
        if (left > TOKENS) two_tiles(g, m, sums);
        else one_tile(g, m, sums);
        if (!full) memcpy(y + m * QD_ROWS, beside, bytes);
    }
}

/* Tiles of 64 bytes a row; as many rows of inputs and sums as there are tokens. */
static void configure(int tokens) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.bytes[t] = 64;
        c.rows[t] = t < WEIGHT_0 && tokens < TOKENS ? (uint8_t)tokens : TOKENS;
    }
    tile_configure(&c);
}

/* Expand segments from `i` on, as many as a group takes, of one tile; return the one behind them. */
static int fill(const qd_span *span, int i, int tile, const uint8_t *weights, const uint8_t *x,
                group *g) {
    int end = i + GROUP < span->count ? i + GROUP : span->count;
    g->steps = 0;
    for (; i < end; i++) {
        const qd_segment *s = span->segments + i;
        size_t bytes = qd_tile_bytes(s);
        expand(s, weights + tile * bytes, span->columns + s->channels, span->tokens <= FEW,
               g->weights + 2 * g->steps);
        for (uint32_t at = 0; at < s->padded; at += DEPTH, g->steps++) {
            g->x[g->steps] = x + at * 2;
            g->row[g->steps] = s->padded * 2;
        }
        weights += span->tiles * bytes;
        x += (size_t)s->order * span->tokens * s->padded * 4;
    }
    return end;
}

static void multiply(const qd_span *span) {
    if (span->tokens < LEAST) {
        qd_avx512.multiply(span);
        return;
    }
    const uint8_t *weights = span->weights, *x = span->tables;
    group g;
    configure(span->tokens);
    for (int i = 0, end = 0; i < span->count; i = end) {
        float *y = span->sums;
        for (int t = 0; t < span->tiles; t++, y += span->tokens * QD_ROWS) {
            end = fill(span, i, t, weights, x, &g);
            all_tokens(&g, span->tokens, y);
        }
        for (const qd_segment *s = span->segments + i; s < span->segments + end; s++) {
            weights += span->tiles * qd_tile_bytes(s);
            x += (size_t)s->order * span->tokens * s->padded * 4;
        }
    }
    tile_release();
}

static void store(const float *sums, const void *bias, int rows, enum qd_dtype dtype, void *y) {
    qd_avx512.store(sums, bias, rows, dtype, y);
}

const qd_unit qd_amx = {.name = "amx", .precise = &qd_avx512, .layout = QD_WORDS, .granule = 32,
                        .block = 256, .ragged = LEAST, .lacks = lacks, .tables = tables,
                        .multiply = multiply, .store = store};
