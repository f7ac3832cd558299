/* Sum planes up to the bytes of a dense weight, for `avx512_bytes.h`. */
#ifndef QDLLM_AVX512_WEIGHTS_H
#define QDLLM_AVX512_WEIGHTS_H

#include <string.h>

#include "avx512.h"

#define HALVES 4 /* registers of the rows of two tiles */

/* Bytes of the 16-bit sums of planes: the nearest, or the high ones, then the low ones. */
enum digit { NEAREST, HIGH, LOW };

/* The weights of a segment and two tiles of rows; 128 stands for zero, but in low bytes. A quad is
 * the channels c, c + 8, c + 16 and c + 24 of 32: their sign bits are in the same places of the two
 * halves of a word and of its bytes. */
typedef struct {
    _Alignas(64) uint8_t bytes[QD_SEGMENT / 4][HALVES][64]; /* [quad][half][row][channel] */
    _Alignas(64) float scales[HALVES][VECTOR];              /* what 1 of a byte is */
    enum digit digit;
} dense;

/* Column scales of a segment over the largest of their channel, 2^15 for 1: channels c and c + 16
 * of 32 side by side, a plane after the other. And the largest of each plane. */
typedef struct {
    const uint8_t *pairs;
    const float *most;
} ratios;

/* Sign bits of a pair of channels c and c + 16. */
static const uint32_t pair_bits[16] = {
    0x00010001, 0x00020002, 0x00040004, 0x00080008, 0x00100010, 0x00200020, 0x00400040, 0x00800080,
    0x01000100, 0x02000200, 0x04000400, 0x08000800, 0x10001000, 0x20002000, 0x40004000, 0x80008000};

INLINE __m512i side_by_side(__m512i low, __m512i high) {
    return _mm512_ternarylogic_epi32(_mm512_slli_epi32(high, 16), low,
                                     _mm512_set1_epi32(0xffff), 0xf8);
}

/* One word, 16 times. */
INLINE __m512i word_at(const void *from) {
    int word;
    memcpy(&word, from, 4);
    return _mm512_set1_epi32(word);
}

/* Scale 16 rows so that no sum of their planes is over 127 * 256: row scales, twice each. What 1 is
 * then, `one` for 1 / 127 of the largest sum, goes to `scales`. */
INLINE void scale_rows(const uint8_t *unit, size_t plane, const float *most, int order,
                       size_t ahead, float one, __m512i *a, float *scales) {
    __m512 row[QD_MOST_ORDER], bound = _mm512_setzero_ps();
    UNROLL for (int k = 0; k < order; k++) {
        _mm_prefetch((const char *)unit + k * plane + ahead, _MM_HINT_T0);
        row[k] = load16(unit + k * plane, QD_FLOAT16, 0, VECTOR);
        bound = _mm512_fmadd_ps(_mm512_abs_ps(row[k]), _mm512_set1_ps(most[k]), bound);
    }
    _mm512_storeu_ps(scales, _mm512_mul_ps(bound, _mm512_set1_ps(one / 127)));
    bound = _mm512_div_ps(_mm512_set1_ps(127 * 256),
                          _mm512_max_ps(bound, _mm512_set1_ps(1e-30f)));
    UNROLL for (int k = 0; k < order; k++) {
        a[k] = _mm512_cvtps_epi32(_mm512_mul_ps(row[k], bound));
        a[k] = side_by_side(a[k], a[k]);
    }
}

/* Add the planes of a pair of channels, of 16 rows. */
INLINE __m512i add_pair(__m512i sum, const __m512i *a, const __m512i *words, const uint8_t *pairs,
                        size_t column, const int order, int pair) {
    const __m512i bits = word_at(pair_bits + pair);
    UNROLL for (int k = 0; k < order; k++) {
        __m512i value = _mm512_mulhrs_epi16(a[k], word_at(pairs + k * column + pair * 4));
        __mmask32 minus = _mm512_testn_epi16_mask(words[k], bits);
        sum = _mm512_mask_sub_epi16(_mm512_add_epi16(sum, value), minus, sum, value);
    }
    return sum;
}

/* Sum the planes of half a tile's rows. Those of the next but one tile are fetched. */
INLINE void sum_planes(const qd_segment *s, const uint8_t *unit, ratios columns, const int order,
                       int half, dense *out) {
    const size_t bytes = qd_tile_bytes(s), plane = bytes / s->order, column = s->padded * 2;
    const __m512i high = _mm512_set1_epi16((short)0xff00);
    const __m512i zero = _mm512_set1_epi16((short)(out->digit == NEAREST ? 0x8080 : 0x8000));
    __m512i a[QD_MOST_ORDER], words[QD_MOST_ORDER];
    scale_rows(unit + half % 2 * 32, plane, columns.most, order, 2 * bytes,
               out->digit == LOW ? 1.0f / 256 : 1, a, out->scales[half]);
    unit += QD_SCALE_BYTES + half % 2 * 64;
    for (int word = 0; word < (int)s->padded / 32; word++, unit += 128, columns.pairs += 64) {
        UNROLL for (int k = 0; k < order; k++) {
            _mm_prefetch((const char *)unit + k * plane + 2 * bytes, _MM_HINT_T0);
            words[k] = _mm512_loadu_si512(unit + k * plane);
        }
        for (int p = 0; p < 8; p++) {
            __m512i even = add_pair(zero, a, words, columns.pairs, column, order, p);
            __m512i odd = add_pair(zero, a, words, columns.pairs, column, order, p + 8);
            if (out->digit == LOW) {
                even = _mm512_slli_epi16(even, 8);
                odd = _mm512_slli_epi16(odd, 8);
            }
            even = _mm512_srli_epi16(even, 8);
            _mm512_store_si512(out->bytes[word * 8 + p][half],
                               _mm512_ternarylogic_epi32(even, odd, high, 0xf8));
        }
    }
}

/* Expand the weights of one or two tiles of rows, to bytes as `out` asks for. */
__attribute__((noinline)) static void expand(const qd_segment *s, const uint8_t *unit,
                                             ratios columns, int tiles, dense *out) {
    for (int half = 0; half < 2 * tiles; half++) {
        const uint8_t *tile = unit + half / 2 * qd_tile_bytes(s);
        if (s->order == 1) sum_planes(s, tile, columns, 1, half, out);
        else if (s->order == 2) sum_planes(s, tile, columns, 2, half, out);
        else if (s->order == 3) sum_planes(s, tile, columns, 3, half, out);
        else if (s->order == 4) sum_planes(s, tile, columns, 4, half, out);
        else sum_planes(s, tile, columns, (int)s->order, half, out);
    }
}

#endif
