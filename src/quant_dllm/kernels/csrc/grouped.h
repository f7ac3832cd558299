/* Multiply by grouped codes of four or eight bits: y = x W^T, an embedding's or a head's.
 *
 *     W[i, j] = scale[i, g] * (code[i, j] - middle + below[i, j] / 16),   g the group of channel j
 *
 * Two rows of codes at a time become floats in registers, and are multiplied by all tokens of a
 * block. Nothing of W is written to memory. It is included once by each instruction set's file,
 * which names what is made here and says how many floats a register has (LANES), how bytes become
 * such (TO_FLOATS), and how many tokens a block has (TOKENS): as registers have sums for.
 */
#ifndef QDLLM_GROUPED_H
#define QDLLM_GROUPED_H

#include <string.h>

#include "qdllm.h"

#define UNROLL _Pragma("GCC unroll 8")
#define PAIR 2   /* rows at a time */

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));

static inline vector same(float value) { return value - (vector){0}; }

static __attribute__((noinline)) bytes tail_at(const uint8_t *at, int64_t left) {
    bytes found = {0};
    memcpy(&found, at, (size_t)left);
    return found;
}

static inline bytes bytes_at(const uint8_t *at, int64_t left) {
    if (left < LANES) return tail_at(at, left);
    bytes found;
    memcpy(&found, at, LANES);
    return found;
}

/* A row of codes, and what they are multiplied by. */
typedef struct {
    const uint8_t *codes;
    const float *scales; /* of its groups */
    float share, middle; /* of a scale; the code of zero */
} row;

/* Add the products of some rows and the tokens of a block to `sum`. */
static inline __attribute__((always_inline)) void
add_rows(const qd_grouped *w, const row *rows, const int count, const vector *x,
         vector to[PAIR][TOKENS]) {
    vector sum[PAIR][TOKENS];
    UNROLL for (int r = 0; r < count; r++)
        UNROLL for (int m = 0; m < TOKENS; m++) sum[r][m] = to[r][m];
    const int halves = w->bits == 4 ? 2 : 1;
    int64_t byte = 0;
    for (int64_t g = 0; g < w->groups; g++) {
        int64_t end = (g + 1) * w->block / halves;
        if (end > w->row_bytes) end = w->row_bytes; /* the last group may be shorter */
        vector by[PAIR], zero[PAIR];
        UNROLL for (int r = 0; r < count; r++) {
            float scale = rows[r].scales[g] * rows[r].share;
            by[r] = same(scale);
            zero[r] = same(-scale * rows[r].middle);
        }
        for (; byte < end; byte += LANES, x += halves * TOKENS)
            UNROLL for (int r = 0; r < count; r++) {
                const bytes codes = bytes_at(rows[r].codes + byte, w->row_bytes - byte);
                const bytes low = halves == 2 ? codes & 15 : codes;
                const vector first = TO_FLOATS(low) * by[r] + zero[r];
                UNROLL for (int m = 0; m < TOKENS; m++) sum[r][m] += first * x[m];
                if (halves == 1) continue;
                const vector second = TO_FLOATS(codes >> 4) * by[r] + zero[r];
                UNROLL for (int m = 0; m < TOKENS; m++) sum[r][m] += second * x[TOKENS + m];
            }
    }
    UNROLL for (int r = 0; r < count; r++)
        UNROLL for (int m = 0; m < TOKENS; m++) to[r][m] = sum[r][m];
}

static inline float total(const vector *sum) {
    float found = 0;
    for (int i = 0; i < LANES; i++) found += (*sum)[i];
    return found;
}

static inline row row_at(const qd_grouped *w, int64_t i) {
    return (row){.codes = w->codes + i * w->row_bytes, .scales = w->scales + i * w->groups,
                 .share = 1, .middle = w->bits == 4 ? 8 : 128};
}

/* Multiply rows from `first` to `end` by the tokens of a block, laid out by `lay_out`. */
void PRODUCT(const qd_grouped *w, const float *laid, int tokens, float *y, int64_t first,
             int64_t end) {
    const vector *x = (const vector *)laid;
    for (int64_t i = first; i < end; i += PAIR) {
        vector sum[PAIR][TOKENS] = {{{0}}};
        int count = end - i < PAIR ? 1 : PAIR;
        row rows[PAIR] = {row_at(w, i), row_at(w, count == PAIR ? i + 1 : i)};
        if (count == PAIR) add_rows(w, rows, PAIR, x, sum);
        else add_rows(w, rows, 1, x, sum);
        for (int r = 0; r < count; r++) {
            int32_t rank = w->rank ? w->rank[i + r] : -1;
            if (rank >= 0) {
                row below = rows[r];
                below.codes = w->below + rank * w->row_bytes;
                below.share = 1.0f / 16;
                below.middle = 0;
                add_rows(w, &below, 1, x, sum + r);
            }
            for (int m = 0; m < tokens; m++) y[m * w->outputs + i + r] = total(&sum[r][m]);
        }
    }
}

/* Lay a block's tokens out as vectors, token after token; of two codes in a byte the channels of
 * the lower halves, then those of the upper. Channels behind the last are zero. */
void LAY_OUT(const qd_grouped *w, const float *x, int tokens, float *laid) {
    const int halves = w->bits == 4 ? 2 : 1;
    for (int64_t j = 0; j < w->inputs; j += LANES * halves)
        for (int half = 0; half < halves; half++)
            for (int m = 0; m < TOKENS; m++, laid += LANES)
                for (int i = 0; i < LANES; i++) {
                    int64_t channel = j + i * halves + half;
                    int there = m < tokens && channel < w->inputs;
                    laid[i] = there ? x[m * w->inputs + channel] : 0;
                }
}

const qd_product PRODUCTS = {.tokens = TOKENS, .lay_out = LAY_OUT, .multiply = PRODUCT};

#endif
