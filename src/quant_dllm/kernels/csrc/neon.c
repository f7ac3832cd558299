/* NEON of 64-bit Arm: `tbl` looks 16 rows up in the table of one quad; sums widen as they grow.
 *
 * Tables: [octet of channels][token][quad 0 or 1][16 patterns], biased to unsigned bytes, a plane
 * after the other.
 */
#ifndef QD_SIMDE /* tests/native emulates the instructions */
#include <arm_neon.h>
#endif
#include <string.h>

#include "qdllm.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define AHEAD 4096 /* bytes that the weights are fetched ahead where memory is waited for */

static const char *lacks(void) { return NULL; } /* every 64-bit Arm has it */

/* Numbers in and out ------------------------------------------------------------------------- */

INLINE float32x4_t load4(const void *x, enum qd_dtype dtype, size_t at) {
    if (dtype == QD_FLOAT32) return vld1q_f32((const float *)x + at);
    uint16x4_t raw = vld1_u16((const uint16_t *)x + at);
    if (dtype == QD_FLOAT16) return vcvt_f32_f16(vreinterpret_f16_u16(raw));
    return vreinterpretq_f32_u32(vshll_n_u16(raw, 16));
}

INLINE uint16x4_t to_bfloat16(float32x4_t value) {
    uint32x4_t bits = vreinterpretq_u32_f32(value);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t round = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(value, value), round, vdupq_n_u32(0x7fc00000)), 16);
}

INLINE void store4(void *y, enum qd_dtype dtype, size_t at, float32x4_t value) {
    uint16_t *half = (uint16_t *)y + at;
    if (dtype == QD_FLOAT32) vst1q_f32((float *)y + at, value);
    else if (dtype == QD_FLOAT16) vst1_u16(half, vreinterpret_u16_f16(vcvt_f16_f32(value)));
    else vst1_u16(half, to_bfloat16(value));
}

static void store(const float *sums, const void *bias, int rows, enum qd_dtype dtype, void *y) {
    size_t item = dtype == QD_FLOAT32 ? 4 : 2;
    float short_bias[QD_ROWS] = {0}, short_y[QD_ROWS];
    void *out = rows == QD_ROWS ? y : short_y;
    if (bias && rows < QD_ROWS) bias = memcpy(short_bias, bias, rows * item);
    for (int r = 0; r < QD_ROWS; r += 4) {
        float32x4_t value = vld1q_f32(sums + r);
        if (bias) value = vaddq_f32(value, load4(bias, dtype, r));
        store4(out, dtype, r, value);
    }
    if (rows < QD_ROWS) memcpy(y, short_y, rows * item);
}

/* Tables ------------------------------------------------------------------------------------- */

static void load(const qd_segment *s, const void *x, enum qd_dtype dtype, float *out) {
    uint32_t j = 0, whole = s->width / 4 * 4;
    size_t item = dtype == QD_FLOAT32 ? 4 : 2;
    for (; j < whole; j += 4) vst1q_f32(out + j, load4(x, dtype, j));
    if (j < s->width) {
        float rest[4] = {0};
        memcpy(rest, (const char *)x + j * item, (s->width - j) * item);
        vst1q_f32(out + j, load4(rest, dtype, 0));
        j += 4;
    }
    for (; j < s->padded; j += 4) vst1q_f32(out + j, vdupq_n_f32(0));
}

/* Scale the channels in place; return the scale of the table, the largest sum |v0| + ... + |v3| over
 * 127: NaN where an input is not finite. Add the square of the largest over the sum of all v^2 to
 * `ratio`. */
static float scaled(const float *x, const float *c, uint32_t channels, float *v, float *ratio) {
    float largest = 0;
    float32x4_t squares = vdupq_n_f32(0);
    for (uint32_t j = 0; j < channels; j += 4) {
        float32x4_t quad = vmulq_f32(vld1q_f32(x + j), vld1q_f32(c + j));
        float sum = vaddvq_f32(vabsq_f32(quad));
        vst1q_f32(v + j, quad);
        squares = vfmaq_f32(squares, quad, quad);
        largest = sum > largest ? sum : largest;
    }
    float energy = vaddvq_f32(squares);
    return qd_table_scale(largest, energy, ratio);
}

/* 16-bit entries are 256 * high + low, the high digit rounded to nearest. */
INLINE uint8x8_t digit(int16x8_t entry, int low) {
    int8x8_t high = vrshrn_n_s16(entry, 8);
    if (low) high = vqmovn_s16(vsubq_s16(entry, vshll_n_s8(high, 8)));
    return veor_u8(vreinterpret_u8_s8(high), vdup_n_u8(0x80));
}

/* Build the table of one digit for one token, segment and plane from what `scaled` gave. */
static void one_table(const float *v, float scale, int quads, int tokens, int low, uint8_t *out) {
    static const int16_t signs[3][8] = {{-1, 1, -1, 1, -1, 1, -1, 1},
                                        {-1, -1, 1, 1, -1, -1, 1, 1},
                                        {-1, -1, -1, -1, 1, 1, 1, 1}};
    float by = scale > 1e-30f ? 256 / scale : 0;
    for (int q = 0; q < quads; q++) {
        int16_t x[4];
        vst1_s16(x, vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(v + 4 * q), by))));
        int16x8_t three = vmulq_n_s16(vld1q_s16(signs[0]), x[0]);
        three = vmlaq_n_s16(three, vld1q_s16(signs[1]), x[1]);
        three = vmlaq_n_s16(three, vld1q_s16(signs[2]), x[2]);
        int16x8_t last = vdupq_n_s16(x[3]);
        uint8_t *at = out + (size_t)(q / 2) * tokens * 32 + (q & 1) * 16;
        vst1_u8(at, digit(vsubq_s16(three, last), low));
        vst1_u8(at + 8, digit(vaddq_s16(three, last), low));
    }
}

static float all_tables(const qd_segment *s, const float *columns, const void *x,
                        enum qd_dtype dtype, size_t stride, int tokens, int low, uint8_t *tables,
                        float *scales) {
    float channels[QD_SEGMENT], v[QD_SEGMENT], worst = 0;
    size_t item = dtype == QD_FLOAT32 ? 4 : 2, table = (size_t)s->padded * 4 * tokens;
    for (uint32_t k = 0; k < s->order; k++) {
        float ratio = 0;
        for (int m = 0; m < tokens; m++) {
            load(s, (const char *)x + m * stride * item, dtype, channels);
            float scale = scaled(channels, columns + k * s->padded, s->padded, v, &ratio);
            scales[k * tokens + m] = scale;
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

/* Look one plane of a tile up for `tokens` tokens: sums in the order of the sign bytes. */
INLINE void look_up(const uint8_t *signs, const uint8_t *table, int octets, const int tokens,
                    uint16x8_t sum[4][4]) {
    UNROLL for (int m = 0; m < tokens; m++)
        UNROLL for (int part = 0; part < 4; part++) sum[m][part] = vdupq_n_u16(0);
    for (int o = 0; o < octets; o++, signs += QD_ROWS, table += tokens * 32) {
        uint8x16_t both[2] = {vld1q_u8(signs), vld1q_u8(signs + 16)};
        UNROLL for (int quad = 0; quad < 2; quad++)
            UNROLL for (int half = 0; half < 2; half++) {
                uint8x16_t index = quad ? vshrq_n_u8(both[half], 4)
                                        : vandq_u8(both[half], vdupq_n_u8(0x0f));
                UNROLL for (int m = 0; m < tokens; m++) {
                    uint8x16_t entries = vld1q_u8(table + m * 32 + quad * 16);
                    uint8x16_t found = vqtbl1q_u8(entries, index);
                    uint16x8_t *to = sum[m] + 2 * half;
                    to[0] = vaddw_u8(to[0], vget_low_u8(found));
                    to[1] = vaddw_high_u8(to[1], found);
                }
            }
    }
}

/* Bring the sums of one token into the order of rows (see qd_octet_row), scale and add them. */
INLINE void add_scaled(const uint16x8_t sum[4], float bias, const float32x4_t *a, float scale,
                       float *sums) {
    uint16x8_t rows[4] = {vuzp1q_u16(sum[0], sum[2]), vuzp1q_u16(sum[1], sum[3]),
                          vuzp2q_u16(sum[0], sum[2]), vuzp2q_u16(sum[1], sum[3])};
    UNROLL for (int r = 0; r < 8; r++) {
        uint16x4_t four = r & 1 ? vget_high_u16(rows[r / 2]) : vget_low_u16(rows[r / 2]);
        float32x4_t value = vsubq_f32(vcvtq_f32_u32(vmovl_u16(four)), vdupq_n_f32(bias));
        float32x4_t y = vld1q_f32(sums + 4 * r);
        vst1q_f32(sums + 4 * r, vfmaq_f32(y, value, vmulq_n_f32(a[r], scale)));
    }
}

INLINE void one_digit(const uint8_t *signs, const uint8_t *table, int octets, const int tokens,
                      const float32x4_t *a, const float *scale, float by, float *sums) {
    uint16x8_t sum[4][4];
    look_up(signs, table, octets, tokens, sum);
    UNROLL for (int m = 0; m < tokens; m++)
        add_scaled(sum[m], 128.0f * 2.0f * (float)octets, a, scale[m] * by, sums + m * QD_ROWS);
}

INLINE void multiply_tile(const qd_segment *s, const uint8_t *unit, const uint8_t *table,
                          size_t low, int has_low, const float *scale, const int tokens,
                          float *sums) {
    const int octets = (int)s->padded / 8;
    for (uint32_t k = 0; k < s->order; k++) {
        const uint8_t *signs = unit + QD_SCALE_BYTES;
        float32x4_t a[8];
        UNROLL for (int r = 0; r < 8; r++) a[r] = load4(unit, QD_FLOAT16, 4 * r);
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
            if (tokens < 4)
                for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(unit + AHEAD + at);
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

const qd_unit qd_neon = {.name = "neon", .layout = QD_OCTETS, .granule = 8, .block = 4,
                         .grouped = &qd_grouped_products, .lacks = lacks, .tables = tables, .multiply = multiply, .store = store};
