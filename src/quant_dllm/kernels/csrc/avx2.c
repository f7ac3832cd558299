/* AVX2, FMA and F16C: `vpshufb` looks 32 rows up in the table of one quad.
 *
 * Table entries are biased to unsigned bytes. A register of 32 looked-up bytes is added twice as
 * 16-bit words: as it is (sum of even bytes + 256 * sum of odd ones, mod 2^16) and its odd bytes
 * alone, taken out by `vpmaddubsw`, which runs beside the shuffles where a shift would compete with
 * them. 128 / 4 entries of at most 255 fit into 16 bits. */
#include "avx2_tables.h"

#define HOLD(sum) __asm__("" : "+x"(sum)) /* GCC 12 would reorder the sum and spill half of them */
#define AHEAD 2048 /* bytes that the weights are fetched ahead */

static const char *lacks(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2")) return "AVX2";
    if (!__builtin_cpu_supports("fma")) return "FMA";
    if (!__builtin_cpu_supports("f16c")) return "F16C";
    return NULL;
}

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
