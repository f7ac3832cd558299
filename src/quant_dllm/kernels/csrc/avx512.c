/* AVX-512 with VBMI and VNNI: `vpermb` looks 16 rows up in the tables of four quads at once, and
 * `vpdpbusd` with a factor of 1 adds the four bytes of a row to its 32-bit sum.
 *
 * A word of 4 bytes holds the signs of 32 channels of a row: the low nibble of byte q is quad 2q
 * and the high one quad 2q + 1, so that one register of 16 words is an index into the tables of the
 * even quads and, shifted by 4, into those of the odd ones: two steps.
 *
 * Many tokens make blocks of their own, whose segments of several planes are multiplied as bytes.
 */
#if defined(__GNUC__) && !defined(__clang__) /* else the indices spill in the inner loop of GCC 12 */
#pragma GCC optimize("ira-region=one")
#endif
#include "avx512_bytes.h"
#include "avx512_tables.h"

/* Bytes that the weights are fetched ahead: few tokens wait for memory, more of them for the second
 * cache, and take longer over what they have. */
#define AHEAD(tokens) ((tokens) < 8 ? 1536 : 4096)

#define LEAST 24 /* tokens that pay for bytes */

enum kind { ONE_DIGIT, TWO_DIGITS, BYTES, TWO_BYTES }; /* looked up, or weights of bytes */

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

/* Tokens that are looked up together, of those that are left. */
static int piece(int left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

/* Build tables of one digit for a block, as long as that is enough; return whether it is. */
static int one_digit_tables(const qd_segment *s, const float *columns, const void *x,
                            enum qd_dtype dtype, size_t stride, int tokens, uint8_t *tables,
                            float *scales) {
    size_t row = stride * (dtype == QD_FLOAT32 ? 4 : 2), table = (size_t)s->order * s->padded * 4;
    for (int m = 0, some; m < tokens; m += some, x = (const char *)x + some * row) {
        some = piece(tokens - m);
        float ratio = all_tables(s, columns, x, dtype, stride, some, 0, tables + m * table,
                                 scales + m * s->order);
        if (!(ratio < qd_worst_ratio(s->padded))) return 0;
    }
    return 1;
}

/* Look-ups of one digit cost as much as bytes at an order of 1.5, or more where few tokens share
 * the expanding of weights; those of two cost twice as much. */
static int tables(const qd_segment *s, const float *columns, const void *x, enum qd_dtype dtype,
                  size_t stride, int tokens, int precise, uint8_t *tables, size_t low,
                  float *scales) {
    if (tokens < LEAST)
        return look_up_tables(s, columns, x, dtype, stride, tokens, precise, tables, low, scales);
    int cheap = s->order == 1 || (s->order == 2 && tokens < 2 * LEAST);
    if (cheap && one_digit_tables(s, columns, x, dtype, stride, tokens, tables, scales))
        return ONE_DIGIT;
    int one = put_bytes(s, columns, x, dtype, stride, tokens, tables, low, scales);
    return one ? BYTES : TWO_BYTES;
}

/* Look `vectors` registers of rows up for `tokens` tokens. Few tokens leave the sums waiting for
 * each other, so that each step of a pair gets its own. */
INLINE void look_up_plane(const uint8_t *signs, const uint8_t *table, int steps, const int tokens,
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
    look_up_plane(unit + QD_SCALE_BYTES + vector * 64, table, steps, tokens, vectors, sum);
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

/* Go on to the next segment. */
INLINE void go_on(const qd_span *span, place *at) {
    size_t planes = (size_t)at->s->order * span->tokens;
    at->weights += span->tiles * qd_tile_bytes(at->s);
    at->tables += planes * at->s->padded * 4;
    at->scales += planes;
    at->s++;
    at->kind++;
}

/* Look segments up to `end` up for `tokens` of a span's tokens, the first of which is token m. */
INLINE void look_up_piece(const qd_span *span, place at, const qd_segment *end, int m,
                          const int tokens) {
    const int vectors = tokens == 8 ? 1 : 2; /* 8 tokens of 2 would want 32 registers of sums */
    for (; at.s < end; go_on(span, &at)) {
        const size_t bytes = qd_tile_bytes(at.s), planes = (size_t)at.s->order * m;
        const uint8_t *unit = at.weights, *table = at.tables + planes * at.s->padded * 4;
        float *sums = span->sums + m * QD_ROWS;
        for (int t = 0; t < span->tiles; t++, unit += bytes, sums += span->tokens * QD_ROWS)
            for (int vector = 0; vector < 2; vector += vectors)
                multiply_rows(at.s, unit, table, span->low, *at.kind == TWO_DIGITS,
                              at.scales + planes, tokens, vectors, vector, sums);
    }
}

/* Look up: the sums of a piece stay in the first cache. */
static void look_up(const qd_span *span, place at, const qd_segment *end) {
    for (int m = 0, some; m < span->tokens; m += some) {
        some = piece(span->tokens - m);
        if (some == 8) look_up_piece(span, at, end, m, 8);
        else if (some == 4) look_up_piece(span, at, end, m, 4);
        else if (some == 2) look_up_piece(span, at, end, m, 2);
        else look_up_piece(span, at, end, m, 1);
    }
}

static void multiply(const qd_span *span) {
    const qd_segment *end = span->segments + span->count;
    place at = {.s = span->segments, .weights = span->weights, .tables = span->tables,
                .scales = span->scales, .kind = span->has_low};
    while (at.s < end) {
        place from = at;
        if (*at.kind >= BYTES) {
            multiply_bytes(span, &at, *at.kind == BYTES ? NEAREST : HIGH);
            if (*at.kind == TWO_BYTES) multiply_bytes(span, &at, LOW);
            go_on(span, &at);
            continue;
        }
        while (at.s < end && *at.kind < BYTES) go_on(span, &at);
        look_up(span, from, at.s);
    }
}

const qd_unit qd_avx512_lookups = {.name = "avx512", .layout = QD_WORDS, .granule = 32, .block = 8,
                                   .grouped = &qd_grouped_avx512_products, .lacks = lacks,
                                   .tables = look_up_tables, .multiply = multiply, .store = store};
const qd_unit qd_avx512 = {.name = "avx512", .precise = &qd_avx512_lookups, .thin = 11,
                           .layout = QD_WORDS, .granule = 32, .block = 8, .ragged = LEAST,
                           .most = 256, .grouped = &qd_grouped_avx512_products, .lacks = lacks,
                           .tables = tables, .multiply = multiply, .store = store};
