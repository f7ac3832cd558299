/* AVX-512 with VBMI and VNNI: `vpermb` looks 16 rows up in the tables of four quads at once, and
 * `vpdpbusd` with a factor of 1 adds the four bytes of a row to its 32-bit sum.
 *
 * A word of 4 bytes holds the signs of 32 channels of a row: the low nibble of byte q is quad 2q
 * and the high one quad 2q + 1, so that one register of 16 words is an index into the tables of the
 * even quads and, shifted by 4, into those of the odd ones: two steps.
 *
 * Tables: [step][token][quad 0-3 of the step][16 patterns], a plane after the other, signed bytes.
 */
#if defined(__GNUC__) && !defined(__clang__) /* else the indices spill in the inner loop of GCC 12 */
#pragma GCC optimize("ira-region=one")
#endif
#include "avx512.h"

#define QUADS (QD_SEGMENT / 4)
/* Bytes that the weights are fetched ahead: few tokens wait for memory, more of them for the second
 * cache, and take longer over what they have. */
#define AHEAD(tokens) ((tokens) < 8 ? 1536 : 4096)

/* Look 16 rows up in four tables and add them to their sums. Made of intrinsics, GCC 12 copies the
 * sum and stores and loads the index at every step. */
INLINE __m512i look_up_and_add(__m512i sum, __m512i index, const uint8_t *table) {
#ifdef QD_SIMDE
    __m512i found = _mm512_permutexvar_epi8(index, _mm512_loadu_si512(table));
    return _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), found);
#else
    __m512i found;
    __asm__("vpermb %[table], %[index], %[found]\n\t"
            "vpdpbusd %[found], %[one], %[sum]"
            : [sum] "+v"(sum), [found] "=&v"(found)
            : [index] "v"(index), [table] "m"(*(const __m512i_u *)table),
              [one] "v"(_mm512_set1_epi8(1)));
    return sum;
#endif
}

static const char *lacks(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2")) return "AVX2";
    if (!__builtin_cpu_supports("fma")) return "FMA";
    if (!__builtin_cpu_supports("f16c")) return "F16C";
    if (!__builtin_cpu_supports("avx512f")) return "AVX512F";
    if (!__builtin_cpu_supports("avx512bw")) return "AVX512BW";
    if (!__builtin_cpu_supports("avx512vl")) return "AVX512VL";
    if (!__builtin_cpu_supports("avx512vbmi")) return "AVX512-VBMI";
    if (!__builtin_cpu_supports("avx512vnni")) return "AVX512-VNNI";
    return NULL;
}

/* Numbers in and out ------------------------------------------------------------------------- */

INLINE __m256i to_bfloat16(__m512 value) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(upper_bfloat16(value), 16));
}

static void store(const float *sums, const void *bias, int rows, enum qd_dtype dtype, void *y) {
    for (int r = 0; r < rows; r += VECTOR) {
        __m512 value = _mm512_loadu_ps(sums + r);
        __mmask16 mask = first(rows - r);
        uint16_t *half = (uint16_t *)y + r;
        if (bias) value = _mm512_add_ps(value, load16(bias, dtype, r, rows - r));
        if (dtype == QD_FLOAT32) _mm512_mask_storeu_ps((float *)y + r, mask, value);
        else if (dtype == QD_FLOAT16)
            _mm256_mask_storeu_epi16(half, mask, _mm512_cvtps_ph(value, 0));
        else _mm256_mask_storeu_epi16(half, mask, to_bfloat16(value));
    }
}

/* Tables ------------------------------------------------------------------------------------- */

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

static int tables(const qd_segment *s, const float *columns, const void *x, enum qd_dtype dtype,
                  size_t stride, int tokens, int precise, uint8_t *tables, size_t low,
                  float *scales) {
    float ratio = all_tables(s, columns, x, dtype, stride, tokens, 0, tables, scales);
    if (!precise && ratio < qd_worst_ratio(s->padded)) return 0;
    all_tables(s, columns, x, dtype, stride, tokens, 1, tables + low, scales);
    return 1;
}

/* Products ----------------------------------------------------------------------------------- */

/* Look `vectors` registers of rows up for `tokens` tokens. Few tokens leave the sums waiting for
 * each other, so that each step of a pair gets its own. */
INLINE void look_up(const uint8_t *signs, const uint8_t *table, int steps, const int tokens,
                    const int vectors, __m512i sum[2][8]) {
    const __m512i nibble = _mm512_set1_epi8(0x0f);
    const __m512i quad = _mm512_set1_epi32(0x30201000); /* which 16 entries a byte looks in */
    const int chains = tokens <= 2 ? 2 : 1;
    __m512i other[2][8];
    UNROLL for (int r = 0; r < vectors; r++)
        UNROLL for (int m = 0; m < tokens; m++) sum[r][m] = other[r][m] = _mm512_setzero_si512();
    for (int step = 0; step < steps; step += 2, signs += 128, table += tokens * 128) {
        __m512i even[2], odd[2];
        UNROLL for (int r = 0; r < vectors; r++) {
            _mm_prefetch((const char *)signs + AHEAD(tokens) + r * 64, _MM_HINT_T0);
            __m512i both = _mm512_loadu_si512(signs + r * 64);
            even[r] = _mm512_ternarylogic_epi32(both, nibble, quad, 0xea);
            both = _mm512_srli_epi16(both, 4);
            odd[r] = _mm512_ternarylogic_epi32(both, nibble, quad, 0xea);
        }
        UNROLL for (int m = 0; m < tokens; m++)
            UNROLL for (int r = 0; r < vectors; r++)
                sum[r][m] = look_up_and_add(sum[r][m], even[r], table + m * 64);
        UNROLL for (int m = 0; m < tokens; m++)
            UNROLL for (int r = 0; r < vectors; r++) {
                __m512i *to = chains == 2 ? &other[r][m] : &sum[r][m];
                *to = look_up_and_add(*to, odd[r], table + (tokens + m) * 64);
            }
    }
    if (chains == 2)
        UNROLL for (int r = 0; r < vectors; r++)
            UNROLL for (int m = 0; m < tokens; m++)
                sum[r][m] = _mm512_add_epi32(sum[r][m], other[r][m]);
}

/* Look up one plane and digit and add it to what the rows of a tile come to. */
INLINE void one_digit(const uint8_t *unit, const uint8_t *table, int steps, const float *scale,
                      float by, const int tokens, const int vectors, int vector,
                      __m512 y[2][8]) {
    __m512i sum[2][8];
    look_up(unit + QD_SCALE_BYTES + vector * 64, table, steps, tokens, vectors, sum);
    UNROLL for (int r = 0; r < vectors; r++) {
        __m512 a = load16(unit, QD_FLOAT16, (size_t)(vector + r) * VECTOR, VECTOR);
        UNROLL for (int m = 0; m < tokens; m++)
            y[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][m]),
                                      _mm512_mul_ps(a, _mm512_set1_ps(scale[m] * by)), y[r][m]);
    }
}

/* All planes of a segment, for one or both registers of a tile's rows. */
INLINE void multiply_rows(const qd_segment *s, const uint8_t *unit, const uint8_t *table,
                          size_t low, int has_low, const float *scale, const int tokens,
                          const int vectors, int vector, float *sums) {
    const int steps = (int)s->padded / 16;
    __m512 y[2][8];
    sums += vector * VECTOR;
    UNROLL for (int r = 0; r < vectors; r++)
        UNROLL for (int m = 0; m < tokens; m++)
            y[r][m] = _mm512_loadu_ps(sums + m * QD_ROWS + r * VECTOR);
    for (uint32_t k = 0; k < s->order; k++) {
        one_digit(unit, table, steps, scale, 1, tokens, vectors, vector, y);
        if (has_low)
            one_digit(unit, table + low, steps, scale, 1.0f / 256, tokens, vectors, vector, y);
        unit += QD_SCALE_BYTES + steps * 64;
        table += steps * tokens * 64;
        scale += tokens;
    }
    UNROLL for (int r = 0; r < vectors; r++)
        UNROLL for (int m = 0; m < tokens; m++)
            _mm512_storeu_ps(sums + m * QD_ROWS + r * VECTOR, y[r][m]);
}

INLINE void multiply_for(const qd_span *span, const int tokens) {
    const uint8_t *unit = span->weights, *table = span->tables;
    const float *scale = span->scales;
    const int vectors = tokens == 8 ? 1 : 2; /* 8 tokens of 2 would want 32 registers of sums */
    for (int i = 0; i < span->count; i++) {
        const qd_segment *s = span->segments + i;
        size_t bytes = qd_tile_bytes(s), planes = (size_t)s->order * tokens;
        float *sums = span->sums;
        for (int t = 0; t < span->tiles; t++, unit += bytes, sums += tokens * QD_ROWS) {
            for (int vector = 0; vector < 2; vector += vectors)
                multiply_rows(s, unit, table, span->low, span->has_low[i], scale, tokens, vectors,
                              vector, sums);
        }
        table += planes * s->padded * 4;
        scale += planes;
    }
}

static void multiply(const qd_span *span) {
    if (span->tokens == 8) multiply_for(span, 8);
    else if (span->tokens == 4) multiply_for(span, 4);
    else if (span->tokens == 2) multiply_for(span, 2);
    else multiply_for(span, 1);
}

const qd_unit qd_avx512 = {.name = "avx512", .layout = QD_WORDS, .granule = 32, .block = 8,
                           .lacks = lacks, .tables = tables, .multiply = multiply,
                           .store = store};
