/* Tables: [octet of channels][token][quad 0 or 1][16 patterns], a plane and digit after another. */
#ifndef QDLLM_AVX2_TABLES_H
#define QDLLM_AVX2_TABLES_H

#include "avx2.h"

#define QUADS (QD_SEGMENT / 4)

/* Convert a segment of one token; what is behind its width becomes 0. */
static void load(const qd_segment *s, const void *x, enum qd_dtype dtype, float *out) {
    uint32_t j = 0;
    size_t item = dtype == QD_FLOAT32 ? 4 : 2;
    for (; j + 8 <= s->width; j += 8) {
        __m256 v = dtype == QD_FLOAT32    ? load8(x, QD_FLOAT32, j)
                   : dtype == QD_FLOAT16 ? load8(x, QD_FLOAT16, j)
                                         : load8(x, QD_BFLOAT16, j);
        _mm256_storeu_ps(out + j, v);
    }
    if (j < s->width) {
        float rest[8] = {0};
        memcpy(rest, (const char *)x + j * item, (s->width - j) * item);
        _mm256_storeu_ps(out + j, load8(rest, dtype, 0));
        j += 8;
    }
    for (; j < QD_SEGMENT; j += 8) _mm256_storeu_ps(out + j, _mm256_setzero_ps());
}

INLINE __m256 two_quads(const float *v, const float *c, int quad) { /* `quad` and the 4th behind */
    __m256 left = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(v + 4 * quad)),
                                       _mm_loadu_ps(v + 4 * quad + 16), 1);
    __m256 right = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(c + 4 * quad)),
                                        _mm_loadu_ps(c + 4 * quad + 16), 1);
    return _mm256_mul_ps(left, right);
}

/* Scale the channels and bring them to [channel of the quad][quad]; return the scale of the table,
 * the largest sum |v0| + ... + |v3| over 127: NaN where an input is not finite. Add the square of
 * the largest over the sum of all v^2 to `ratio`. */
static float scaled(const float *x, const float *c, float v[4][QUADS], float *ratio) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 most = _mm256_setzero_ps(), squares = most;
    for (int q = 0; q < QUADS; q += 8, x += 32, c += 32) {
        __m256 a0 = two_quads(x, c, 0), a1 = two_quads(x, c, 1);
        __m256 a2 = two_quads(x, c, 2), a3 = two_quads(x, c, 3);
        __m256 t0 = _mm256_unpacklo_ps(a0, a1), t1 = _mm256_unpackhi_ps(a0, a1);
        __m256 t2 = _mm256_unpacklo_ps(a2, a3), t3 = _mm256_unpackhi_ps(a2, a3);
        __m256 b[4] = {_mm256_shuffle_ps(t0, t2, 0x44), _mm256_shuffle_ps(t0, t2, 0xee),
                       _mm256_shuffle_ps(t1, t3, 0x44), _mm256_shuffle_ps(t1, t3, 0xee)};
        __m256 sum = _mm256_setzero_ps();
        UNROLL for (int i = 0; i < 4; i++) {
            _mm256_storeu_ps(v[i] + q, b[i]);
            sum = _mm256_add_ps(sum, _mm256_and_ps(b[i], magnitude));
            squares = _mm256_fmadd_ps(b[i], b[i], squares);
        }
        most = _mm256_max_ps(most, sum);
    }
    float largest[8], square[8], scale = 0, energy = 0;
    _mm256_storeu_ps(largest, most);
    _mm256_storeu_ps(square, squares);
    for (int i = 0; i < 8; i++) {
        scale = largest[i] > scale ? largest[i] : scale;
        energy += square[i];
    }
    return qd_table_scale(scale, energy, ratio);
}

/* Round 16 quads to 16 bits: in each lane the words are 4 quads and the 4 quads 8 behind them. */
INLINE __m256i rounded(const float *v, __m256 by) {
    __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(v), by));
    __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(v + 8), by));
    return _mm256_packs_epi32(a, b);
}

/* 16-bit entries are 256 * high + low, the high digit rounded to nearest. */
INLINE __m256i high_digit(__m256i entry) {
    return _mm256_srai_epi16(_mm256_add_epi16(entry, _mm256_set1_epi16(128)), 8);
}

INLINE __m256i low_digit(__m256i entry) {
    return _mm256_sub_epi16(entry, _mm256_slli_epi16(high_digit(entry), 8));
}

/* Write the tables of 16 quads from the entries 8-15 of each; the entry of the opposite signs is
 * the opposite number. */
INLINE void write_tables(const __m256i upper[8], int quads, int tokens, uint8_t *out) {
    const __m256i bias = _mm256_set1_epi8((char)0x80), zero = _mm256_setzero_si256();
    __m256i row[8], pair[8], four[8];
    UNROLL for (int i = 0; i < 8; i++) {
        __m256i lower = _mm256_sub_epi16(zero, upper[7 - i]);
        row[i] = _mm256_xor_si256(_mm256_packs_epi16(lower, upper[i]), bias);
    }
    UNROLL for (int i = 0; i < 4; i++) { /* patterns (2i, 2i+1), below 8 and above */
        pair[i] = _mm256_unpacklo_epi8(row[2 * i], row[2 * i + 1]);
        pair[4 + i] = _mm256_unpackhi_epi8(row[2 * i], row[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) { /* four patterns: quads 0-3, quads 4-7 of the lane */
        four[2 * i] = _mm256_unpacklo_epi16(pair[2 * i], pair[2 * i + 1]);
        four[2 * i + 1] = _mm256_unpackhi_epi16(pair[2 * i], pair[2 * i + 1]);
    }
    UNROLL for (int half = 0; half < 2; half++) {
        __m256i low[2] = {_mm256_unpacklo_epi32(four[half], four[2 + half]),
                          _mm256_unpackhi_epi32(four[half], four[2 + half])};
        __m256i high[2] = {_mm256_unpacklo_epi32(four[4 + half], four[6 + half]),
                           _mm256_unpackhi_epi32(four[4 + half], four[6 + half])};
        UNROLL for (int j = 0; j < 4; j++) {
            __m256i two = j & 1 ? _mm256_unpackhi_epi64(low[j / 2], high[j / 2])
                                : _mm256_unpacklo_epi64(low[j / 2], high[j / 2]);
            int quad = half * 8 + j;
            uint8_t *first = out + (size_t)(quad / 2) * tokens * 32 + (quad & 1) * 16;
            uint8_t *second = first + (size_t)2 * tokens * 32;
            if (quad < quads) _mm_storeu_si128((__m128i *)first, _mm256_castsi256_si128(two));
            if (quad + 4 < quads)
                _mm_storeu_si128((__m128i *)second, _mm256_extracti128_si256(two, 1));
        }
    }
}

/* Build the table of one digit for one token, segment and plane from what `scaled` gave. */
static void one_table(float v[4][QUADS], float scale, int quads, int tokens, int low,
                      uint8_t *out) {
    __m256 by = _mm256_set1_ps(scale > 1e-30f ? 256 / scale : 0);
    for (int q = 0; q < quads; q += 16, out += (size_t)8 * tokens * 32) {
        __m256i v0 = rounded(v[0] + q, by), v1 = rounded(v[1] + q, by);
        __m256i v2 = rounded(v[2] + q, by), v3 = rounded(v[3] + q, by);
        __m256i p = _mm256_add_epi16(v0, v1), n = _mm256_sub_epi16(v0, v1);
        __m256i s = _mm256_add_epi16(v2, v3), d = _mm256_sub_epi16(v3, v2);
        __m256i entry[8] = {_mm256_sub_epi16(d, p), _mm256_add_epi16(d, n),
                            _mm256_sub_epi16(d, n), _mm256_add_epi16(d, p),
                            _mm256_sub_epi16(s, p), _mm256_add_epi16(s, n),
                            _mm256_sub_epi16(s, n), _mm256_add_epi16(s, p)};
        UNROLL for (int i = 0; i < 8; i++)
            entry[i] = low ? low_digit(entry[i]) : high_digit(entry[i]);
        write_tables(entry, quads - q, tokens, out);
    }
}

static float all_tables(const qd_segment *s, const float *columns, const void *x,
                        enum qd_dtype dtype, size_t stride, int tokens, int low, uint8_t *tables,
                        float *scales) {
    float channels[QD_SEGMENT], c[QD_SEGMENT] = {0}, v[4][QUADS], worst = 0;
    size_t item = dtype == QD_FLOAT32 ? 4 : 2, table = (size_t)s->padded * 4 * tokens;
    for (uint32_t k = 0; k < s->order; k++) {
        const float *column = columns + k * s->padded;
        if (s->padded < QD_SEGMENT) column = memcpy(c, column, s->padded * sizeof(float));
        float ratio = 0;
        for (int m = 0; m < tokens; m++) {
            load(s, (const char *)x + m * stride * item, dtype, channels);
            float scale = scales[k * tokens + m] = scaled(channels, column, v, &ratio);
            one_table(v, scale, (int)s->padded / 4, tokens, low, tables + k * table + m * 32);
        }
        worst = ratio > worst ? ratio : worst;
    }
    return worst / (float)tokens;
}

static int tables(const qd_segment *s, const float *columns, const void *x, enum qd_dtype dtype,
                  size_t stride, int tokens, int precise, uint8_t *tables, size_t low,
                  float *scales) {
    float ratio = all_tables(s, columns, x, dtype, stride, tokens, 0, tables, scales);
    if (!precise && ratio < qd_worst_ratio(s->padded)) return 0;
    all_tables(s, columns, x, dtype, stride, tokens, 1, tables + low, scales);
    return 1;
}

#endif
