/* Many tokens: products of bytes. The planes of two tiles of rows are summed up to bytes once for
 * all tokens of a block, inputs are rounded to bytes, and `vpdpbusd` multiplies four channels of 16
 * rows by those of a token.
 *
 * A token's step is so small that rounding keeps what the segment comes to within QD_TOLERANCE. An
 * input too large for a byte of such steps is a sum of several: the first stands with the others,
 * the rest in spare quads, which name the quad of weights that they belong to.
 *
 * In the place of low digits, the segments of a block of tokens close together: ratios of the
 * column scales; then groups of tokens: [token][channel] bytes, quads as in `dense`, and what makes
 * up for the zero of the weights. In that of a segment's tables: its spare quads.
 */
#ifndef QDLLM_AVX512_BYTES_H
#define QDLLM_AVX512_BYTES_H

#include "avx512_weights.h"

#define GROUP 6 /* tokens that are multiplied together: with HALVES, 24 registers of sums */

/* Squares of the relative error are in units of 1 / (12 127^2): what may be added up to, and what
 * rounding the inputs may add at least. Bytes that a token's inputs are over one each are no more
 * than their squares over that of 127 steps, width / limit: a group has 0.6 * order * padded spare
 * quads at most, and their 17 times as many bytes have room from 24 tokens on. */
#define SQUARE_OF_ERROR (QD_TOLERANCE * QD_TOLERANCE * 12 * 127 * 127)
#define LEAST_LIMIT(s) (10.0f / (float)(s)->order)

/* Bytes that are left of a quad of a group's inputs. */
typedef struct {
    uint8_t x[GROUP * 4]; /* [token][channel] */
    uint32_t quad;        /* which one */
} spare;

/* The inputs of a group. */
typedef struct {
    uint8_t *bytes;
    int32_t *zero; /* -128 times the sum of a token's inputs */
    uint32_t *spares, *first; /* how many, and those of the groups before it */
} group;

static size_t ratio_bytes(const qd_segment *s) {
    return (size_t)s->order * s->padded * 2 + QD_MOST_ORDER * sizeof(float);
}

static size_t group_bytes(const qd_segment *s) { return GROUP * s->padded + 32; }

/* Where a segment begins, of a block of tokens that has its tables at `tables`. */
static uint8_t *bytes_at(const qd_segment *s, const uint8_t *tables, size_t low, int tokens) {
    size_t groups = (tokens + GROUP - 1) / GROUP;
    size_t before = s->channels * 2 + s->plane * 32 + groups * (s->before * GROUP + s->plane * 32);
    return (uint8_t *)tables - s->channels * 4 * tokens + low + before;
}

static group group_at(const qd_segment *s, uint8_t *bytes, int index) {
    uint8_t *at = bytes + ratio_bytes(s) + group_bytes(s) * index;
    int32_t *zero = (int32_t *)(at + GROUP * s->padded);
    return (group){.bytes = at, .zero = zero, .spares = (uint32_t *)zero + GROUP,
                   .first = (uint32_t *)zero + GROUP + 1};
}

static ratios ratios_at(const qd_segment *s, const uint8_t *bytes) {
    return (ratios){.pairs = bytes,
                    .most = (const float *)(bytes + (size_t)s->order * s->padded * 2)};
}

static int group_of(int left) { return left < GROUP ? left : GROUP; }

/* Inputs ------------------------------------------------------------------------------------- */

/* Write the ratios of the column scales; the largest scale of a channel goes to `largest` and from
 * there to the inputs. Return a bound of what rounding the weights adds to the square of the
 * relative error. */
static float put_ratios(const qd_segment *s, const float *columns, float *largest, uint8_t *out) {
    float *most = (float *)(out + (size_t)s->order * s->padded * 2), bound = 0;
    for (int at = 0; at < (int)s->padded; at += VECTOR) {
        __m512 top = _mm512_set1_ps(1e-30f);
        for (uint32_t k = 0; k < s->order; k++)
            top = _mm512_max_ps(top, _mm512_abs_ps(_mm512_loadu_ps(columns + k * s->padded + at)));
        _mm512_storeu_ps(largest + at, top);
    }
    for (uint32_t k = 0; k < s->order; k++, columns += s->padded) {
        __m512 top = _mm512_setzero_ps(), squares = top;
        for (int at = 0; at < (int)s->padded; at += 2 * VECTOR, out += 64) {
            __m512i part[2];
            UNROLL for (int i = 0; i < 2; i++) {
                __m512 q = _mm512_div_ps(_mm512_loadu_ps(columns + at + i * VECTOR),
                                         _mm512_loadu_ps(largest + at + i * VECTOR));
                top = _mm512_max_ps(top, _mm512_abs_ps(q));
                squares = _mm512_fmadd_ps(q, q, squares);
                part[i] = _mm512_cvtps_epi32(_mm512_mul_ps(q, _mm512_set1_ps(32767)));
            }
            _mm512_storeu_si512(out, side_by_side(part[0], part[1]));
        }
        most[k] = _mm512_reduce_max_ps(top);
        if (most[k] > 0)
            bound += most[k] * most[k] * (float)s->width / _mm512_reduce_add_ps(squares);
    }
    return bound;
}

/* Scale the inputs of a token; return the largest. */
INLINE float scale_inputs(const qd_segment *s, const void *x, enum qd_dtype dtype,
                          const float *largest, float *z) {
    __m512 top = _mm512_setzero_ps();
    for (int at = 0; at < (int)s->padded; at += VECTOR) {
        __m512 value = _mm512_mul_ps(load16(x, dtype, at, (int)s->width - at),
                                     _mm512_loadu_ps(largest + at));
        _mm512_storeu_ps(z + at, value);
        top = _mm512_max_ps(top, _mm512_abs_ps(value));
    }
    return _mm512_reduce_max_ps(top);
}

/* Find the step of a token: the largest input over 127, or less where the square of the error would
 * be over the limit. The more one channel towers over the rest, the more the signal is that of its
 * weights alone, which may be half of what those of all come to. Return NaN where an input is not
 * finite. */
INLINE float step_of(const qd_segment *s, const float *z, float top, float bound) {
    __m512 squares = _mm512_setzero_ps(), by = _mm512_set1_ps(top > 1e-28f ? 1 / top : 0);
    for (int at = 0; at < (int)s->padded; at += VECTOR) {
        __m512 value = _mm512_mul_ps(_mm512_loadu_ps(z + at), by); /* infinity times 0: NaN */
        squares = _mm512_fmadd_ps(value, value, squares);
    }
    float energy = _mm512_reduce_add_ps(squares);
    float limit = fmaxf(SQUARE_OF_ERROR * energy / (energy + 1) - bound, LEAST_LIMIT(s));
    float part = sqrtf(limit * energy / (float)s->width);
    if (energy != energy) return NAN;
    return top / 127 * (part < 1 && part > 0 ? part : 1);
}

/* Round the inputs of a token to steps, in quads as `dense` has them, and write what a byte holds
 * of them. Channels that hold more are added to `over`, which has a word for 32. Return -128 times
 * the sum of all. */
INLINE int32_t round_inputs(const qd_segment *s, const float *z, float step, int16_t *steps,
                            uint8_t *out, uint32_t *over) {
    const __m512i places = _mm512_set_epi16( /* the packed registers have 4 channels each in turn */
        31, 15, 27, 11, 30, 14, 26, 10, 29, 13, 25, 9, 28, 12, 24, 8,
        23, 7, 19, 3, 22, 6, 18, 2, 21, 5, 17, 1, 20, 4, 16, 0);
    const __m512 by = _mm512_set1_ps(step > 1e-30f ? 1 / step : 0);
    const __mmask32 finite = step == step ? 0xffffffff : 0;
    __m512i sum = _mm512_setzero_si512();
    for (int at = 0; at < (int)s->padded; at += 32, steps += 32, over++) {
        __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(z + at), by));
        __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(z + at + VECTOR), by));
        __m512i all = _mm512_maskz_permutexvar_epi16(finite, places, _mm512_packs_epi32(a, b));
        __m256i byte = _mm512_cvtsepi16_epi8(all);
        _mm512_storeu_si512(steps, all);
        _mm256_storeu_si256((__m256i *)(out + at), byte);
        __m512i left = _mm512_sub_epi16(all, _mm512_cvtepi8_epi16(byte));
        *over |= _mm512_test_epi16_mask(left, left);
        sum = _mm512_add_epi32(sum, _mm512_madd_epi16(all, _mm512_set1_epi16(1)));
    }
    return -128 * _mm512_reduce_add_epi32(sum);
}

/* Write what the bytes of a quad leave of the inputs of a group; return where it ends. */
static spare *put_spares(const int16_t *steps, int quad, spare *out) {
    int16_t inputs[32] = {0};
    for (int m = 0; m < GROUP; m++) memcpy(inputs + m * 4, steps + m * QD_SEGMENT + quad * 4, 8);
    __m512i left = _mm512_loadu_si512(inputs);
    __m256i byte = _mm512_cvtsepi16_epi8(left);
    for (;; out++) {
        left = _mm512_sub_epi16(left, _mm512_cvtepi8_epi16(byte));
        if (!_mm512_test_epi16_mask(left, left)) return out;
        byte = _mm512_cvtsepi16_epi8(left);
        memcpy(out->x, &byte, sizeof out->x);
        out->quad = (uint32_t)quad;
    }
}

/* Write the inputs of a block of tokens. Return whether weights of one byte are good enough. */
static int put_bytes(const qd_segment *s, const float *columns, const void *x, enum qd_dtype dtype,
                     size_t stride, int tokens, uint8_t *tables, size_t low, float *scales) {
    float largest[QD_SEGMENT], z[QD_SEGMENT];
    int16_t steps[GROUP * QD_SEGMENT];
    const size_t item = dtype == QD_FLOAT32 ? 4 : 2, row = stride * item;
    uint8_t *bytes = bytes_at(s, tables, low, tokens);
    spare *spares = (spare *)tables, *end = spares;
    float bound = put_ratios(s, columns, largest, bytes);
    int one = bound + LEAST_LIMIT(s) < SQUARE_OF_ERROR;
    for (int m = 0, some; m < tokens; m += some) {
        group g = group_at(s, bytes, m / GROUP);
        uint32_t over[QD_SEGMENT / 32] = {0};
        some = group_of(tokens - m);
        memset(g.bytes, 0, group_bytes(s)); /* tokens that are not there */
        memset(steps, 0, sizeof steps);
        for (int i = 0; i < some; i++, x = (const char *)x + row) {
            const char *later = (const char *)x + GROUP * row;
            for (size_t b = 0; b < s->width * item; b += 64) _mm_prefetch(later + b, _MM_HINT_T0);
            float top = scale_inputs(s, x, dtype, largest, z);
            float step = scales[m + i] = step_of(s, z, top, one ? bound : 0);
            g.zero[i] = round_inputs(s, z, step, steps + i * QD_SEGMENT, g.bytes + i * s->padded,
                                     over);
        }
        *g.first = (uint32_t)(end - spares);
        for (int word = 0; word < QD_SEGMENT / 32; word++)
            for (int quad = word * 8; over[word]; quad++, over[word] >>= 4)
                if (over[word] & 15) end = put_spares(steps, quad, end);
        *g.spares = (uint32_t)(end - spares) - *g.first;
    }
    return one;
}

/* Products ----------------------------------------------------------------------------------- */

INLINE __m512i multiply_and_add(__m512i sum, __m512i weights, __m512i x) {
#ifdef QD_SIMDE
    return _mm512_dpbusd_epi32(sum, weights, x);
#else /* made of intrinsics, GCC 12 copies the sum */
    __asm__("vpdpbusd %[x], %[weights], %[sum]"
            : [sum] "+v"(sum)
            : [weights] "v"(weights), [x] "v"(x));
    return sum;
#endif
}

/* Multiply a quad of weights by those of a group of tokens, `stride` bytes apart. */
INLINE void one_quad(const uint8_t *weights, const uint8_t *x, size_t stride, const int halves,
                     __m512i sum[GROUP][HALVES]) {
    __m512i w[HALVES];
    UNROLL for (int h = 0; h < halves; h++) w[h] = _mm512_load_si512(weights + h * 64);
    UNROLL for (int m = 0; m < GROUP; m++) {
        __m512i quad = word_at(x + m * stride);
        UNROLL for (int h = 0; h < halves; h++) sum[m][h] = multiply_and_add(sum[m][h], w[h], quad);
    }
}

/* Multiply the weights by a group of tokens; add to the sums of `some` of them, those of two tiles
 * `apart` floats apart. */
INLINE void one_group(const dense *w, const group *g, const size_t padded, const spare *spares,
                      const float *scales, int some, const int halves, float *sums, size_t apart) {
    __m512i sum[GROUP][HALVES];
    UNROLL for (int m = 0; m < GROUP; m++)
        UNROLL for (int h = 0; h < halves; h++)
            sum[m][h] = _mm512_set1_epi32(w->digit == LOW ? 0 : g->zero[m]);
    for (size_t quad = 0; quad < padded / 4; quad++)
        one_quad(w->bytes[quad][0], g->bytes + quad * 4, padded, halves, sum);
    spares += *g->first;
    for (const spare *end = spares + *g->spares; spares < end; spares++)
        one_quad(w->bytes[spares->quad][0], spares->x, 4, halves, sum);
    UNROLL for (int h = 0; h < halves; h++) {
        const __m512 rows = _mm512_load_ps(w->scales[h]);
        UNROLL for (int m = 0; m < GROUP; m++) {
            float *to = sums + h / 2 * apart + m * QD_ROWS + h % 2 * VECTOR;
            __m512 by = _mm512_mul_ps(rows, _mm512_set1_ps(scales[m]));
            if (m == some) break;
            _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[m][h]), by,
                                                 _mm512_loadu_ps(to)));
        }
    }
}

/* A segment of a span. */
typedef struct {
    const qd_segment *s;
    const uint8_t *weights, *tables;
    const float *scales;
    const uint8_t *kind;
} place;

/* Multiply one or two tiles of rows by all tokens of a span. */
INLINE void all_groups(const qd_span *span, const place *at, const dense *w, uint8_t *bytes,
                       const int tiles, float *sums) {
    const size_t apart = (size_t)span->tokens * QD_ROWS;
    const spare *spares = (const spare *)at->tables;
    for (int m = 0; m < span->tokens; m += GROUP, sums += GROUP * QD_ROWS) {
        group g = group_at(at->s, bytes, m / GROUP);
        int some = group_of(span->tokens - m);
        const float *scales = at->scales + m;
        if (at->s->padded == QD_SEGMENT)
            one_group(w, &g, QD_SEGMENT, spares, scales, some, 2 * tiles, sums, apart);
        else
            one_group(w, &g, at->s->padded, spares, scales, some, 2 * tiles, sums, apart);
    }
}

/* Multiply a segment by all tokens of a span. */
static void multiply_bytes(const qd_span *span, const place *at, enum digit digit) {
    uint8_t *bytes = bytes_at(at->s, at->tables, span->low, span->tokens);
    const ratios columns = ratios_at(at->s, bytes);
    dense w;
    w.digit = digit;
    for (int tile = 0; tile < span->tiles; tile += 2) {
        int tiles = span->tiles - tile < 2 ? 1 : 2;
        float *sums = span->sums + (size_t)tile * span->tokens * QD_ROWS;
        expand(at->s, at->weights + tile * qd_tile_bytes(at->s), columns, tiles, &w);
        if (tiles == 2) all_groups(span, at, &w, bytes, 2, sums);
        else all_groups(span, at, &w, bytes, 1, sums);
    }
}

#endif
