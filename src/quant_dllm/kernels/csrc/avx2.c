/* AVX2, FMA and F16C: `vpshufb` looks 32 rows up in the table of one quad.
 *
 * Table entries are biased to unsigned bytes. A register of 32 looked-up bytes is added twice as
 * 16-bit words: as it is (sum of even bytes + 256 * sum of odd ones, mod 2^16) and its odd bytes
 * alone, taken out by `vpmaddubsw`, which runs beside the shuffles where a shift would compete with
 * them. 128 / 4 entries of at most 255 fit into 16 bits.
 *
 * Tables: [octet of channels][token][quad 0 or 1][16 patterns], a plane and digit after the other.
 */
#include <immintrin.h>
#include <string.h>

#include "qdllm.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define QUADS (QD_SEGMENT / 4)
#define HOLD(sum) __asm__("" : "+x"(sum)) /* GCC 12 would reorder the sum and spill half of them */
#define AHEAD 2048 /* bytes that the weights are fetched ahead */

static const char *lacks(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2")) return "AVX2";
    if (!__builtin_cpu_supports("fma")) return "FMA";
    if (!__builtin_cpu_supports("f16c")) return "F16C";
    return NULL;
}

/* Numbers in and out ------------------------------------------------------------------------- */

INLINE __m256 load8(const void *x, enum qd_dtype dtype, size_t at) {
    if (dtype == QD_FLOAT32) return _mm256_loadu_ps((const float *)x + at);
    __m128i raw = _mm_loadu_si128((const __m128i *)((const uint16_t *)x + at));
    if (dtype == QD_FLOAT16) return _mm256_cvtph_ps(raw);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}

INLINE __m128i to_bfloat16(__m256 value) {
    __m256i bits = _mm256_castps_si256(value), one = _mm256_set1_epi32(1);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256 nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    bits = _mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7fc00000), _mm256_castps_si256(nan));
    bits = _mm256_srli_epi32(bits, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}

INLINE void store8(void *y, enum qd_dtype dtype, size_t at, __m256 value) {
    __m128i *half = (__m128i *)((uint16_t *)y + at);
    if (dtype == QD_FLOAT32) _mm256_storeu_ps((float *)y + at, value);
    else if (dtype == QD_FLOAT16) _mm_storeu_si128(half, _mm256_cvtps_ph(value, 0));
    else _mm_storeu_si128(half, to_bfloat16(value));
}

INLINE void store_as(const float *sums, const void *bias, enum qd_dtype dtype, void *y) {
    UNROLL for (int r = 0; r < QD_ROWS; r += 8) {
        __m256 value = _mm256_loadu_ps(sums + r);
        if (bias) value = _mm256_add_ps(value, load8(bias, dtype, r));
        store8(y, dtype, r, value);
    }
}

static void store(const float *sums, const void *bias, int rows, enum qd_dtype dtype, void *y) {
    size_t item = dtype == QD_FLOAT32 ? 4 : 2;
    float short_bias[QD_ROWS] = {0}, short_y[QD_ROWS];
    void *out = rows == QD_ROWS ? y : short_y;
    if (bias && rows < QD_ROWS) bias = memcpy(short_bias, bias, rows * item);
    if (dtype == QD_FLOAT32) store_as(sums, bias, QD_FLOAT32, out);
    else if (dtype == QD_FLOAT16) store_as(sums, bias, QD_FLOAT16, out);
    else store_as(sums, bias, QD_BFLOAT16, out);
    if (rows < QD_ROWS) memcpy(y, short_y, rows * item);
}

/* Tables ------------------------------------------------------------------------------------- */

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
        UNROLL for (int i = 0; i < 8; i++) entry[i] = low ? low_digit(entry[i]) : high_digit(entry[i]);
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

/* Products ----------------------------------------------------------------------------------- */

/* Look one plane of a tile up for `tokens` tokens. */
INLINE void look_up(const uint8_t *signs, const uint8_t *table, int octets, const int tokens,
                    __m256i *all, __m256i *odd) {
    const __m256i nibble = _mm256_set1_epi8(0x0f), odd_bytes = _mm256_set1_epi16(0x0100);
    for (int o = 0; o < octets; o++, signs += QD_ROWS, table += tokens * 32) {
        __m256i both = _mm256_loadu_si256((const __m256i *)signs);
        UNROLL for (int quad = 0; quad < 2; quad++) {
            __m256i index = quad ? _mm256_srli_epi16(both, 4) : both;
            index = _mm256_and_si256(index, nibble);
            UNROLL for (int m = 0; m < tokens; m++) {
                const __m128i *at = (const __m128i *)(table + m * 32 + quad * 16);
                __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128(at));
                __m256i found = _mm256_shuffle_epi8(entries, index);
                all[m] = _mm256_add_epi16(all[m], found);
                odd[m] = _mm256_add_epi16(odd[m], _mm256_maddubs_epi16(found, odd_bytes));
                HOLD(all[m]);
                HOLD(odd[m]);
            }
        }
    }
}

/* Make floats of the sums of one token, scale them, add them. 16-bit words become the low half of
 * floats of exponent 2^23; the bias of the table and that of the exponent go away together. */
INLINE void add_scaled(__m256i all, __m256i odd, __m256 bias, const __m256 *a, float scale,
                       float *sums) {
    const __m256i exponent = _mm256_set1_epi16(0x4b00);
    __m256i even = _mm256_sub_epi16(all, _mm256_slli_epi16(odd, 8));
    __m256i word[4] = {_mm256_unpacklo_epi16(even, exponent), _mm256_unpackhi_epi16(even, exponent),
                       _mm256_unpacklo_epi16(odd, exponent), _mm256_unpackhi_epi16(odd, exponent)};
    __m256 by = _mm256_set1_ps(scale);
    UNROLL for (int r = 0; r < 4; r++) {
        __m256 value = _mm256_sub_ps(_mm256_castsi256_ps(word[r]), bias);
        __m256 sum = _mm256_loadu_ps(sums + r * 8);
        _mm256_storeu_ps(sums + r * 8, _mm256_fmadd_ps(value, _mm256_mul_ps(a[r], by), sum));
    }
}

/* Look up and add one plane and digit; `by` scales the scales. */
INLINE void one_digit(const uint8_t *signs, const uint8_t *table, int octets, const int tokens,
                      const __m256 *a, const float *scale, float by, float *sums) {
    const __m256 bias = _mm256_set1_ps(8388608.0f + 128.0f * 2.0f * (float)octets);
    __m256i all[4], odd[4];
    UNROLL for (int m = 0; m < tokens; m++) all[m] = odd[m] = _mm256_setzero_si256();
    look_up(signs, table, octets, tokens, all, odd);
    UNROLL for (int m = 0; m < tokens; m++)
        add_scaled(all[m], odd[m], bias, a, scale[m] * by, sums + m * QD_ROWS);
}

INLINE void multiply_tile(const qd_segment *s, const uint8_t *unit, const uint8_t *table,
                          size_t low, int has_low, const float *scale, const int tokens,
                          float *sums) {
    const int octets = (int)s->padded / 8;
    for (uint32_t k = 0; k < s->order; k++) {
        const uint8_t *signs = unit + QD_SCALE_BYTES;
        __m256 a[4];
        UNROLL for (int r = 0; r < 4; r++) a[r] = load8(unit, QD_FLOAT16, r * 8);
        one_digit(signs, table, octets, tokens, a, scale, 1, sums);
        if (has_low) one_digit(signs, table + low, octets, tokens, a, scale, 1.0f / 256, sums);
        unit += QD_SCALE_BYTES + octets * QD_ROWS;
        table += octets * tokens * 32;
        scale += tokens;
    }
}

INLINE void multiply_for(const qd_span *span, const int tokens) {
    const uint8_t *unit = span->weights, *table = span->tables;
    const float *scale = span->scales;
    for (int i = 0; i < span->count; i++) {
        const qd_segment *s = span->segments + i;
        size_t bytes = qd_tile_bytes(s), planes = (size_t)s->order * tokens;
        float *sums = span->sums;
        for (int t = 0; t < span->tiles; t++, unit += bytes, sums += tokens * QD_ROWS) {
            for (size_t at = 0; at < bytes; at += 64)
                _mm_prefetch((const char *)unit + AHEAD + at, _MM_HINT_T0);
            multiply_tile(s, unit, table, span->low, span->has_low[i], scale, tokens, sums);
        }
        table += planes * s->padded * 4;
        scale += planes;
    }
}

static void multiply(const qd_span *span) {
    if (span->tokens == 4) multiply_for(span, 4);
    else if (span->tokens == 2) multiply_for(span, 2);
    else multiply_for(span, 1);
}

const qd_unit qd_avx2 = {.name = "avx2", .layout = QD_OCTETS, .granule = 8, .block = 4,
                         .grouped = &qd_grouped_avx2_products, .lacks = lacks, .tables = tables,
                         .multiply = multiply, .store = store};
