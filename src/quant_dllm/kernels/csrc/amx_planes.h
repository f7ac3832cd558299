/* Sum planes up to the tiles of a dense weight in bfloat16. */
#ifndef QDLLM_AMX_PLANES_H
#define QDLLM_AMX_PLANES_H

#include <string.h>

#include "avx512.h"

#define DEPTH 32              /* channels of a tile */
#define TILE_BYTES 1024
#define GROUP 2               /* segments that are expanded together, at most */
#define STEPS (GROUP * QD_SEGMENT / DEPTH)
#define AHEAD 1536            /* bytes that the weights are fetched ahead */

/* A step: 32 channels of a segment. */
typedef struct {
    const uint8_t *unit;     /* scales and signs of the first tile of rows */
    const uint8_t *columns;  /* scales of the step's channels, pairs of 16-bit floats */
    const uint8_t *x;        /* of the first token, at the segment's first channel */
    size_t bytes, plane;     /* to the next tile of rows; to the next plane */
    int order, padded, word; /* word: steps before it in the segment */
} step;

/* The steps that are multiplied together, and the weights of one tile of rows: two tiles a step. */
typedef struct {
    _Alignas(64) uint8_t weights[2 * STEPS][TILE_BYTES];
    step steps[STEPS];
    int count;
} strip;

/* A constant in a register: GCC 12 would make it anew at every use. */
INLINE __m512i kept(int word) {
    __m512i all = _mm512_set1_epi16((short)word);
#ifndef QD_SIMDE
    __asm__("" : "+v"(all));
#endif
    return all;
}

/* Sum the planes of 16 rows and 16 pairs of channels, the last pair first, whose sign bits lead the
 * halves of the words: [pair][row][channel of the pair]. A 16-bit float without its last three bits
 * is a bfloat16 whose exponent is 112 too small: 64 is added here, `SHIFT` to the inputs. A zero
 * becomes 2^-30 of the largest sum. */
INLINE void sum_planes(const step *s, const uint8_t *unit, const int order, int half,
                       uint8_t *out) {
    const __m512i sign = kept(0x8000), without = kept(0x8fff), more = kept(0x2000);
    const uint8_t *columns = s->columns;
    const size_t plane = s->plane, column = (size_t)s->padded * 2;
    const size_t place = QD_SCALE_BYTES + s->word * 128 + half * 64;
    __m512i a[QD_MOST_ORDER], words[QD_MOST_ORDER];
    UNROLL for (int k = 0; k < order; k++, unit += plane) {
        const uint8_t *signs = unit + place;
        a[k] = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(unit + half * 32)));
        a[k] = _mm512_or_si512(a[k], _mm512_slli_epi32(a[k], 16));
        _mm_prefetch((const char *)signs + AHEAD, _MM_HINT_T0);
        words[k] = _mm512_loadu_si512(signs);
    }
    UNROLL for (int p = 15; p >= 0; p--) {
        __m512h sum = _mm512_setzero_ph();
        UNROLL for (int k = 0; k < order; k++) {
            int pair;
            memcpy(&pair, columns + k * column + p * 4, 4);
            __m512i bits = _mm512_ternarylogic_epi32(words[k], a[k], sign, 0xc6); /* 0: minus */
            __m512h scale = _mm512_castsi512_ph(_mm512_set1_epi32(pair));
            words[k] = _mm512_add_epi32(words[k], words[k]); /* on any port, as no shift is */
            sum = k ? _mm512_fmadd_ph(_mm512_castsi512_ph(bits), scale, sum)
                    : _mm512_mul_ph(_mm512_castsi512_ph(bits), scale);
        }
        __m512i bits = _mm512_srai_epi16(_mm512_castph_si512(sum), 3);
        bits = _mm512_ternarylogic_epi32(bits, without, more, 0xea); /* bits & without | more */
        _mm512_storeu_si512(out + p * 64, bits);
    }
}

/* Expand the weights of a tile of rows. Inlined, GCC 12 runs out of registers. */
__attribute__((noinline)) static void expand(strip *p, int tile) {
    for (int i = 0; i < 2 * p->count; i++) {
        const step *s = p->steps + i / 2;
        const uint8_t *unit = s->unit + tile * s->bytes;
        uint8_t *out = p->weights[i];
        if (s->order == 1) sum_planes(s, unit, 1, i % 2, out);
        else if (s->order == 2) sum_planes(s, unit, 2, i % 2, out);
        else if (s->order == 3) sum_planes(s, unit, 3, i % 2, out);
        else sum_planes(s, unit, s->order, i % 2, out);
    }
}

#endif
