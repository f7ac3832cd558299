/* Tables for look-ups: [step][token][quad 0-3 of the step][16 patterns], a plane after the other,
 * signed bytes. */
#ifndef QDLLM_AVX512_TABLES_H
#define QDLLM_AVX512_TABLES_H

#include "avx512.h"

#define QUADS (QD_SEGMENT / 4)

static void load(const qd_segment *s, const void *x, enum qd_dtype dtype, float *out) {
    for (int j = 0; j < QD_SEGMENT; j += VECTOR)
        _mm512_storeu_ps(out + j, load16(x, dtype, j, (int)s->width - j));
}

INLINE __m512 product(const float *x, const float *c) {
    return _mm512_mul_ps(_mm512_loadu_ps(x), _mm512_loadu_ps(c));
}

/* Scale the channels and bring them to [channel of the quad][16 quads of 64 channels]: the lane is
 * the quad of a step, the float in it the step. Return the scale of the table, the largest sum
 * |v0| + ... + |v3| over 127: NaN where an input is not finite. Add the square of the largest over
 * the sum of all v^2 to `ratio`. */
static float scaled(const float *x, const float *c, float v[4][QUADS], float *ratio) {
    __m512 most = _mm512_setzero_ps(), squares = most;
    UNROLL for (int half = 0; half < 2; half++, x += 64, c += 64) {
        __m512 z[4] = {product(x, c), product(x + 16, c + 16), product(x + 32, c + 32),
                       product(x + 48, c + 48)};
        __m512 a0 = _mm512_shuffle_f32x4(z[0], z[1], 0x88); /* even quads of 32 channels */
        __m512 a1 = _mm512_shuffle_f32x4(z[0], z[1], 0xdd);
        __m512 a2 = _mm512_shuffle_f32x4(z[2], z[3], 0x88);
        __m512 a3 = _mm512_shuffle_f32x4(z[2], z[3], 0xdd);
        __m512 t0 = _mm512_unpacklo_ps(a0, a1), t1 = _mm512_unpackhi_ps(a0, a1);
        __m512 t2 = _mm512_unpacklo_ps(a2, a3), t3 = _mm512_unpackhi_ps(a2, a3);
        __m512 b[4] = {_mm512_shuffle_ps(t0, t2, 0x44), _mm512_shuffle_ps(t0, t2, 0xee),
                       _mm512_shuffle_ps(t1, t3, 0x44), _mm512_shuffle_ps(t1, t3, 0xee)};
        __m512 sum = _mm512_setzero_ps();
        UNROLL for (int i = 0; i < 4; i++) {
            _mm512_storeu_ps(v[i] + half * 16, b[i]);
            sum = _mm512_add_ps(sum, _mm512_abs_ps(b[i]));
            squares = _mm512_fmadd_ps(b[i], b[i], squares);
        }
        most = _mm512_max_ps(most, sum);
    }
    float largest = _mm512_reduce_max_ps(most), energy = _mm512_reduce_add_ps(squares);
    return qd_table_scale(largest, energy, ratio);
}

/* Round 32 quads to 16 bits: the lane is the quad of a step, the word in it the step. */
INLINE __m512i rounded(const float *v, __m512 by) {
    __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(v), by));
    __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(v + 16), by));
    return _mm512_packs_epi32(a, b);
}

/* 16-bit entries are 256 * high + low, the high digit rounded to nearest. */
INLINE __m512i high_digit(__m512i entry) {
    return _mm512_srai_epi16(_mm512_add_epi16(entry, _mm512_set1_epi16(128)), 8);
}

INLINE __m512i low_digit(__m512i entry) {
    return _mm512_sub_epi16(entry, _mm512_slli_epi16(high_digit(entry), 8));
}

/* Write the tables of up to 8 steps from the entries 8-15; the entry of the opposite signs is the
 * opposite number. */
INLINE void write_tables(const __m512i upper[8], int steps, int tokens, uint8_t *out) {
    const __m512i zero = _mm512_setzero_si512();
    __m512i row[8], pair[8], four[8];
    UNROLL for (int i = 0; i < 8; i++)
        row[i] = _mm512_packs_epi16(_mm512_sub_epi16(zero, upper[7 - i]), upper[i]);
    UNROLL for (int i = 0; i < 4; i++) { /* patterns (2i, 2i+1), below 8 and above */
        pair[i] = _mm512_unpacklo_epi8(row[2 * i], row[2 * i + 1]);
        pair[4 + i] = _mm512_unpackhi_epi8(row[2 * i], row[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) { /* four patterns: steps 0-3, steps 4-7 */
        four[2 * i] = _mm512_unpacklo_epi16(pair[2 * i], pair[2 * i + 1]);
        four[2 * i + 1] = _mm512_unpackhi_epi16(pair[2 * i], pair[2 * i + 1]);
    }
    UNROLL for (int half = 0; half < 2; half++) {
        __m512i low[2] = {_mm512_unpacklo_epi32(four[half], four[2 + half]),
                          _mm512_unpackhi_epi32(four[half], four[2 + half])};
        __m512i high[2] = {_mm512_unpacklo_epi32(four[4 + half], four[6 + half]),
                           _mm512_unpackhi_epi32(four[4 + half], four[6 + half])};
        UNROLL for (int j = 0; j < 4; j++) {
            __m512i step = j & 1 ? _mm512_unpackhi_epi64(low[j / 2], high[j / 2])
                                 : _mm512_unpacklo_epi64(low[j / 2], high[j / 2]);
            int at = half * 4 + j;
            if (at < steps) _mm512_storeu_si512(out + (size_t)at * tokens * 64, step);
        }
    }
}

/* Build the table of one digit for one token, segment and plane from what `scaled` gave. */
static void one_table(float v[4][QUADS], float scale, int steps, int tokens, int low,
                      uint8_t *out) {
    __m512 by = _mm512_set1_ps(scale > 1e-30f ? 256 / scale : 0);
    __m512i v0 = rounded(v[0], by), v1 = rounded(v[1], by);
    __m512i v2 = rounded(v[2], by), v3 = rounded(v[3], by);
    __m512i p = _mm512_add_epi16(v0, v1), n = _mm512_sub_epi16(v0, v1);
    __m512i s = _mm512_add_epi16(v2, v3), d = _mm512_sub_epi16(v3, v2);
    __m512i entry[8] = {_mm512_sub_epi16(d, p), _mm512_add_epi16(d, n), _mm512_sub_epi16(d, n),
                        _mm512_add_epi16(d, p), _mm512_sub_epi16(s, p), _mm512_add_epi16(s, n),
                        _mm512_sub_epi16(s, n), _mm512_add_epi16(s, p)};
    UNROLL for (int i = 0; i < 8; i++)
        entry[i] = low ? low_digit(entry[i]) : high_digit(entry[i]);
    write_tables(entry, steps, tokens, out);
}

static float all_tables(const qd_segment *s, const float *columns, const void *x,
                        enum qd_dtype dtype, size_t stride, int tokens, int low, uint8_t *tables,
                        float *scales) {
    float channels[QD_SEGMENT], c[QD_SEGMENT], v[4][QUADS], worst = 0;
    size_t item = dtype == QD_FLOAT32 ? 4 : 2, table = (size_t)s->padded * 4 * tokens;
    for (uint32_t k = 0; k < s->order; k++) {
        const float *column = columns + k * s->padded;
        float ratio = 0;
        for (int j = 0; j < QD_SEGMENT; j += VECTOR)
            _mm512_storeu_ps(c + j, load16(column, QD_FLOAT32, j, (int)s->padded - j));
        for (int m = 0; m < tokens; m++) {
            load(s, (const char *)x + m * stride * item, dtype, channels);
            float scale = scales[k * tokens + m] = scaled(channels, c, v, &ratio);
            one_table(v, scale, (int)s->padded / 16, tokens, low, tables + k * table + m * 64);
        }
        worst = ratio > worst ? ratio : worst;
    }
    return worst / (float)tokens;
}

static int look_up_tables(const qd_segment *s, const float *columns, const void *x,
                          enum qd_dtype dtype, size_t stride, int tokens, int precise,
                          uint8_t *tables, size_t low, float *scales) {
    float ratio = all_tables(s, columns, x, dtype, stride, tokens, 0, tables, scales);
    if (!precise && ratio < qd_worst_ratio(s->padded)) return 0;
    all_tables(s, columns, x, dtype, stride, tokens, 1, tables + low, scales);
    return 1;
}

#endif
