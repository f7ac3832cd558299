/* AVX-512 with VBMI and VNNI: `vpermb` looks 16 rows up in the tables of four quads at once, and
 * `vpdpbusd` with a factor of 1 adds the four bytes of a row to its 32-bit sum.
 *
 * A word of 4 bytes holds the signs of 32 channels of a row: the low nibble of byte q is quad 2q
 * and the high one quad 2q + 1, so that one register of 16 words is an index into the tables of the
 * even quads and, shifted by 4, into those of the odd ones: two steps.
 */
#if defined(__GNUC__) && !defined(__clang__) /* else the indices spill in the inner loop of GCC 12 */
#pragma GCC optimize("ira-region=one")
#endif
#include "avx512_tables.h"

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
                           .lacks = lacks, .tables = look_up_tables, .multiply = multiply,
                           .store = store};
