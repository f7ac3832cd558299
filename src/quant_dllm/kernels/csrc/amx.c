/* AMX: products of 16 tokens with 16 rows, over 32 channels in bfloat16, summed in float32.
 *
 * The planes of a tile of rows are summed up in registers, in 16-bit floats, once for all tokens of
 * a block, and their sums written as the tiles of a dense weight in bfloat16, which stay in the
 * first cache while all tokens pass over them.
 * Few tokens do not pay for that: they go to the AVX-512 unit, whose layout this is.
 *
 * A pair of a tile is (channel c, channel c + 16) of 32: then the sign bits of both are in the same
 * place of the two halves of a word.
 *
 * "Tables": column scales, pairs of 16-bit floats; then inputs in bfloat16, [32 tokens, or those
 * left][32 channels][token]: a tile is 1 KB in a row. The segments of a block of tokens lie close
 * together; there is no low digit.
 */
#include <string.h>

#include "amx_planes.h"
#include "amx_tiles.h"

#define LEAST 16              /* tokens that pay for dense tiles */
#define TOKENS 16             /* of a tile */
#define FEW 64                /* tokens up to which one is: it leaves room in the first cache */
#define SHIFT 48              /* exponent that `sum_planes` leaves to the inputs */
#define MEAN 1.00123f         /* mean of a 16-bit float over it without its last three bits */

/* Tiles: sums of two times 16 tokens and the two halves of the rows, inputs, weights. */
enum { SUM_00, SUM_01, SUM_10, SUM_11, INPUT_0, INPUT_1, WEIGHT_0, WEIGHT_1 };

/* Inputs ------------------------------------------------------------------------------------- */

INLINE __m512i pairs(__m512 low, __m512 high) {
    return _mm512_or_si512(_mm512_srli_epi32(upper_bfloat16(low), 16), upper_bfloat16(high));
}

/* Inputs take two bytes a channel where tables, which leave the room, take four a plane: count the
 * bytes that a segment's begin before its tables. */
static size_t closer(const qd_segment *s, int tokens) {
    return tokens * (s->channels * 4 - s->before * 2) - s->channels * 2;
}

static size_t column_bytes(const qd_segment *s) { return (size_t)s->order * s->padded * 2; }

static int together(int tokens) { return tokens < 2 * TOKENS ? tokens : 2 * TOKENS; }

INLINE __m512i half16(const float *from, __m512 factor) {
    return _mm512_cvtepu16_epi32(_mm512_cvtps_ph(_mm512_mul_ps(_mm512_loadu_ps(from), factor), 0));
}

/* Write the column scales of a segment; return where they end. */
static uint8_t *put_columns(const qd_segment *s, const float *columns, uint8_t *out) {
    const __m512 factor = _mm512_set1_ps(ldexpf(1, s->exponent));
    for (size_t at = 0; at < (size_t)s->order * s->padded; at += DEPTH, out += 64) {
        __m512i above = _mm512_slli_epi32(half16(columns + at + VECTOR, factor), 16);
        _mm512_storeu_si512(out, _mm512_or_si512(above, half16(columns + at, factor)));
    }
    return out;
}

static int tables(const qd_segment *s, const float *columns, const void *x, enum qd_dtype dtype,
                  size_t stride, int tokens, int precise, uint8_t *tables, size_t low,
                  float *scales) {
    if (tokens < LEAST)
        return qd_avx512_lookups.tables(s, columns, x, dtype, stride, tokens, precise, tables, low,
                                        scales);
    int width = (int)s->width, item = dtype == QD_FLOAT32 ? 4 : 2, some;
    const __m512 factor = _mm512_set1_ps(ldexpf(MEAN, SHIFT - s->exponent));
    tables -= closer(s, tokens);
    tables = put_columns(s, columns, tables);
    for (int m = 0; m < tokens; m += some) {
        some = together(tokens - m);
        for (int i = 0; i < some; i++, x = (const char *)x + stride * item) {
            const char *later = (const char *)x + 8 * stride * item;
            for (int b = 0; b < width * item; b += 64) _mm_prefetch(later + b, _MM_HINT_T0);
            for (int at = 0; at < (int)s->padded; at += DEPTH) {
                __m512 low = load16(x, dtype, at, width - at);
                __m512 high = load16(x, dtype, at + VECTOR, width - at - VECTOR);
                _mm512_storeu_si512(tables + (at / DEPTH * some + i) * 64,
                                    pairs(_mm512_mul_ps(low, factor), _mm512_mul_ps(high, factor)));
            }
        }
        tables += some * s->padded * 2;
    }
    return 0;
}

/* Products ----------------------------------------------------------------------------------- */

/* Inputs of `some` tokens from token m on. */
INLINE const uint8_t *inputs_at(const step *s, int m, int some) {
    return s->x + (size_t)m * s->padded * 2 + s->word * some * 64;
}

/* Multiply 17 to 32 tokens. */
INLINE void two_tiles(const strip *p, int m, int some, float *y) {
    float *y1 = y + TOKENS * QD_ROWS;
    tile_load(SUM_00, y, QD_ROWS * 4);
    tile_load(SUM_01, y + VECTOR, QD_ROWS * 4);
    tile_load(SUM_10, y1, QD_ROWS * 4);
    tile_load(SUM_11, y1 + VECTOR, QD_ROWS * 4);
    for (int i = 0; i < p->count; i++) {
        const uint8_t *x = inputs_at(p->steps + i, m, some);
        tile_load(INPUT_0, x, 64);
        tile_load(WEIGHT_0, p->weights[2 * i], 64);
        tile_dot(SUM_00, INPUT_0, WEIGHT_0);
        tile_load(WEIGHT_1, p->weights[2 * i + 1], 64);
        tile_dot(SUM_01, INPUT_0, WEIGHT_1);
        tile_load(INPUT_1, x + TILE_BYTES, 64);
        tile_dot(SUM_10, INPUT_1, WEIGHT_0);
        tile_dot(SUM_11, INPUT_1, WEIGHT_1);
    }
    tile_store(SUM_00, y, QD_ROWS * 4);
    tile_store(SUM_01, y + VECTOR, QD_ROWS * 4);
    tile_store(SUM_10, y1, QD_ROWS * 4);
    tile_store(SUM_11, y1 + VECTOR, QD_ROWS * 4);
}

/* Multiply up to 16 tokens. Each product waits for the last one of its sum: steps take turns with
 * two sums. */
INLINE void one_tile(const strip *p, int m, int some, float *y) {
    _Alignas(64) float other[TOKENS * QD_ROWS];
    tile_load(SUM_00, y, QD_ROWS * 4);
    tile_load(SUM_01, y + VECTOR, QD_ROWS * 4);
    tile_zero(SUM_10);
    tile_zero(SUM_11);
    for (int i = 0; i < p->count; i++) {
        tile_load(INPUT_0, inputs_at(p->steps + i, m, some), 64);
        tile_load(WEIGHT_0, p->weights[2 * i], 64);
        tile_load(WEIGHT_1, p->weights[2 * i + 1], 64);
        if (i % 2) {
            tile_dot(SUM_10, INPUT_0, WEIGHT_0);
            tile_dot(SUM_11, INPUT_0, WEIGHT_1);
        } else {
            tile_dot(SUM_00, INPUT_0, WEIGHT_0);
            tile_dot(SUM_01, INPUT_0, WEIGHT_1);
        }
    }
    tile_store(SUM_00, y, QD_ROWS * 4);
    tile_store(SUM_01, y + VECTOR, QD_ROWS * 4);
    tile_store(SUM_10, other, QD_ROWS * 4);
    tile_store(SUM_11, other + VECTOR, QD_ROWS * 4);
    for (int i = 0; i < TOKENS * QD_ROWS; i += VECTOR)
        _mm512_storeu_ps(y + i, _mm512_add_ps(_mm512_loadu_ps(y + i), _mm512_loadu_ps(other + i)));
}

/* Multiply all tokens of a block; tiles that are not full have room beside the sums. */
static void all_tokens(const strip *p, int tokens, float *y) {
    _Alignas(64) float beside[2 * TOKENS * QD_ROWS];
    for (int m = 0; m < tokens; m += 2 * TOKENS) {
        int left = tokens - m, full = left >= 2 * TOKENS || left == TOKENS;
        float *sums = full ? y + m * QD_ROWS : beside;
        size_t bytes = (size_t)left * QD_ROWS * sizeof(float);
        if (!full) memcpy(beside, y + m * QD_ROWS, bytes);
        if (left > TOKENS) two_tiles(p, m, together(left), sums);
        else one_tile(p, m, left, sums);
        if (!full) memcpy(y + m * QD_ROWS, beside, bytes);
    }
}

/* Tiles of 64 bytes a row; as many rows of inputs and sums as there are tokens. */
static void configure(int tokens) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.bytes[t] = 64;
        c.rows[t] = t < WEIGHT_0 && tokens < TOKENS ? (uint8_t)tokens : TOKENS;
    }
    tile_configure(&c);
}

/* Where the strips of a span are: some segments each. */
typedef struct {
    const qd_span *span;
    const uint8_t *weights, *x; /* of the first segment that is left */
    int first;
} place;

/* Lay out the next strip; return its steps. */
static int lay_out(place *at, strip *to) {
    const qd_span *span = at->span;
    int most = span->tokens <= FEW ? 1 : GROUP, some = 0;
    to->count = 0;
    for (; some < most && at->first < span->count; some++, at->first++) {
        const qd_segment *s = span->segments + at->first;
        size_t bytes = qd_tile_bytes(s);
        for (int word = 0; word < (int)s->padded / DEPTH; word++)
            to->steps[to->count++] = (step){
                .unit = at->weights, .columns = at->x + word * 64, .x = at->x + column_bytes(s),
                .bytes = bytes, .plane = bytes / s->order, .order = (int)s->order,
                .padded = (int)s->padded, .word = word};
        at->weights += span->tiles * bytes;
        at->x += column_bytes(s) + (size_t)span->tokens * s->padded * 2;
    }
    return to->count;
}

static void multiply(const qd_span *span) {
    if (span->tokens < LEAST) {
        qd_avx512_lookups.multiply(span);
        return;
    }
    place at = {.span = span, .weights = span->weights,
                .x = span->tables - closer(span->segments, span->tokens)};
    strip now;
    configure(span->tokens);
    while (lay_out(&at, &now))
        for (int tile = 0; tile < span->tiles; tile++) {
            expand(&now, tile);
            all_tokens(&now, span->tokens, span->sums + tile * span->tokens * QD_ROWS);
        }
    tile_release();
}

static void store(const float *sums, const void *bias, int rows, enum qd_dtype dtype, void *y) {
    qd_avx512.store(sums, bias, rows, dtype, y);
}

const qd_unit qd_amx = {.name = "amx", .precise = &qd_avx512_lookups, .layout = QD_WORDS,
                        .granule = 32, .block = 8, .ragged = LEAST, .most = 256,
                        .grouped = &qd_grouped_avx512_products, .lacks = lacks,
                        .tables = tables, .multiply = multiply, .store = store};
