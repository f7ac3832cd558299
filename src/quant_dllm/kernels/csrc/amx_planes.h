/* Sum planes up to the tiles of a dense weight in bfloat16, a part of a tile at a time. */
#ifndef QDLLM_AMX_PLANES_H
#define QDLLM_AMX_PLANES_H

#include <string.h>

#include "avx512.h"

#define DEPTH 32              /* channels of a tile */
#define TILE_BYTES 1024
#define PAIRS 8               /* of a tile's 16, that are expanded in one go */
#define PARTS (16 / PAIRS)
#define GROUP 2               /* segments that are expanded together, at most */
#define STEPS (GROUP * QD_SEGMENT / DEPTH)
#define AHEAD 1536            /* bytes that the weights are fetched ahead */

/* A step: 32 channels of a segment, 32 rows of weights and all tokens. */
typedef struct {
    const qd_segment *segment;
    const uint8_t *unit;    /* the rows' scales and signs */
    const uint8_t *columns; /* scales of the segment, pairs of 16-bit floats */
    const uint8_t *x;       /* of the first token, at the segment's first channel */
    int word;               /* steps before it in the segment */
} step;

/* The steps that are multiplied together: two tiles of weights each. */
typedef struct {
    _Alignas(64) uint8_t weights[2 * STEPS][TILE_BYTES];
    step steps[STEPS];
    int count, expanded; /* steps; parts of tiles that are there */
} group;

/* Sum the planes of 16 rows and some pairs of channels: [pair][row][channel of the pair]. A 16-bit
 * float without its last three bits is a bfloat16 whose exponent is 112 too small: 64 is added
 * here, `SHIFT` to the inputs. A zero becomes 2^-30 of the largest sum. */
INLINE void sum_planes(const step *s, const int order, int half, int part, uint8_t *out) {
    const __m512i sign = _mm512_set1_epi16((short)0x8000);
    const __m512i kept = _mm512_set1_epi16((short)0x8fff), more = _mm512_set1_epi16(0x2000);
    const size_t padded = s->segment->padded, plane = QD_SCALE_BYTES + padded * (QD_ROWS / 8);
    const uint8_t *columns = s->columns + (s->word * 16 + part * PAIRS) * 4;
    const __m128i first = _mm_cvtsi32_si128(16 - PAIRS - part * PAIRS);
    __m512i a[QD_MOST_ORDER], words[QD_MOST_ORDER];
    UNROLL for (int k = 0; k < order; k++) {
        const uint8_t *scales = s->unit + k * plane + half * 32;
        const uint8_t *signs = s->unit + k * plane + QD_SCALE_BYTES + s->word * 128 + half * 64;
        a[k] = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)scales));
        a[k] = _mm512_or_si512(a[k], _mm512_slli_epi32(a[k], 16));
        if (!part) _mm_prefetch((const char *)signs + AHEAD, _MM_HINT_T0);
        words[k] = _mm512_sll_epi32(_mm512_loadu_si512(signs), first);
    }
    UNROLL for (int p = 0; p < PAIRS; p++) {
        __m512h sum = _mm512_setzero_ph();
        UNROLL for (int k = 0; k < order; k++) {
            int pair;
            memcpy(&pair, columns + k * padded * 2 + p * 4, 4);
            __m512i bits = _mm512_slli_epi32(words[k], PAIRS - 1 - p);
            bits = _mm512_ternarylogic_epi32(a[k], bits, sign, 0xd2); /* a bit of 0 is a minus */
            __m512h scale = _mm512_castsi512_ph(_mm512_set1_epi32(pair));
            sum = k ? _mm512_fmadd_ph(_mm512_castsi512_ph(bits), scale, sum)
                    : _mm512_mul_ph(_mm512_castsi512_ph(bits), scale);
        }
        __m512i bits = _mm512_srai_epi16(_mm512_castph_si512(sum), 3);
        bits = _mm512_ternarylogic_epi32(bits, kept, more, 0xea); /* bits & kept | more */
        _mm512_storeu_si512(out + (part * PAIRS + p) * 64, bits);
    }
}

/* Expand one more part of a tile of weights. */
static void expand(group *g) {
    int tile = g->expanded / PARTS, part = g->expanded++ % PARTS, half = tile % 2;
    const step *s = g->steps + tile / 2;
    int order = (int)s->segment->order;
    if (order == 1) sum_planes(s, 1, half, part, g->weights[tile]);
    else if (order == 2) sum_planes(s, 2, half, part, g->weights[tile]);
    else if (order == 3) sum_planes(s, 3, half, part, g->weights[tile]);
    else sum_planes(s, order, half, part, g->weights[tile]);
}

#endif
