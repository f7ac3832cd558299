/* Any processor: sum the planes of a tile into floats, multiply. No table, no rounding beyond
 * float32; the vectors are the compiler's. */
#include "layout.h"

#include <string.h>

static const char *lacks(void) { return NULL; }

static float load(const void *x, enum qd_dtype dtype, size_t at) {
    if (dtype == QD_FLOAT32) return ((const float *)x)[at];
    uint16_t raw = ((const uint16_t *)x)[at];
    if (dtype == QD_FLOAT16) return qd_half_to_float(raw);
    union { uint32_t bits; float value; } out = {(uint32_t)raw << 16};
    return out.value;
}

/* The "tables" of this unit are the numbers themselves: [channel][token]. */
static int tables(const qd_segment *s, const float *columns, const void *x, enum qd_dtype dtype,
                  size_t stride, int tokens, int precise, uint8_t *tables, size_t low,
                  float *scales) {
    float *out = (float *)tables;
    (void)columns, (void)precise, (void)low, (void)scales;
    for (uint32_t j = 0; j < s->padded; j++)
        for (int m = 0; m < tokens; m++)
            out[j * tokens + m] = j < s->width ? load(x, dtype, m * stride + j) : 0;
    return 0;
}

/* Dequantize one tile of a segment: w [channel][32 rows]. */
static void dequantize(const qd_segment *s, const uint8_t *unit, const float *columns, float *w) {
    memset(w, 0, s->padded * QD_ROWS * sizeof(float));
    for (uint32_t k = 0; k < s->order; k++, columns += s->padded) {
        float a[QD_ROWS];
        for (int r = 0; r < QD_ROWS; r++) a[r] = qd_half_to_float(((const uint16_t *)unit)[r]);
        unit += QD_SCALE_BYTES;
        for (uint32_t o = 0; o < s->padded / 8; o++, unit += QD_ROWS)
            for (int position = 0; position < QD_ROWS; position++) {
                int row = qd_octet_row(position);
                for (int b = 0; b < 8; b++) {
                    float v = a[row] * columns[o * 8 + b];
                    w[(o * 8 + b) * QD_ROWS + row] += unit[position] >> b & 1 ? v : -v;
                }
            }
    }
}

static void add(const float *w, const float *x, uint32_t channels, int tokens, float *sums) {
    for (int m = 0; m < tokens; m++) {
        float y[QD_ROWS];
        memcpy(y, sums + m * QD_ROWS, sizeof y);
        for (uint32_t j = 0; j < channels; j++)
            for (int r = 0; r < QD_ROWS; r++) y[r] += w[j * QD_ROWS + r] * x[j * tokens + m];
        memcpy(sums + m * QD_ROWS, y, sizeof y);
    }
}

static void multiply(const qd_span *span) {
    float w[QD_SEGMENT * QD_ROWS];
    const uint8_t *unit = span->weights, *x = span->tables;
    for (int i = 0; i < span->count; i++) {
        const qd_segment *s = span->segments + i;
        for (int t = 0; t < span->tiles; t++, unit += qd_tile_bytes(s)) {
            dequantize(s, unit, span->columns + s->channels, w);
            add(w, (const float *)x, s->padded, span->tokens,
                span->sums + (size_t)t * span->tokens * QD_ROWS);
        }
        x += (size_t)span->tokens * s->order * s->padded * 4;
    }
}

static uint16_t to_bfloat16(float value) {
    union { float value; uint32_t bits; } in = {value};
    if (value != value) return 0x7fc0;
    return (uint16_t)((in.bits + 0x7fff + (in.bits >> 16 & 1)) >> 16);
}

static uint16_t to_float16(float value) {
    union { float value; uint32_t bits; } in = {value};
    uint16_t sign = (uint16_t)(in.bits >> 16 & 0x8000);
    in.bits &= 0x7fffffffu;
    if (in.bits > 0x7f800000u) return sign | 0x7e00;
    if (in.bits >= 0x477ff000u) return sign | 0x7c00; /* 65520 and more */
    if (in.bits < (113u << 23)) { /* subnormal: the sum rounds at the last bit kept */
        in.value += 0.5f;
        return sign | (uint16_t)(in.bits - 0x3f000000u);
    }
    in.bits += 0xfff + (in.bits >> 13 & 1);
    return sign | (uint16_t)((in.bits - (112u << 23)) >> 13);
}

static void store(const float *sums, const void *bias, int rows, enum qd_dtype dtype, void *y) {
    for (int r = 0; r < rows; r++) {
        float value = sums[r] + (bias ? load(bias, dtype, r) : 0);
        if (dtype == QD_FLOAT32) ((float *)y)[r] = value;
        else ((uint16_t *)y)[r] = dtype == QD_FLOAT16 ? to_float16(value) : to_bfloat16(value);
    }
}

const qd_unit qd_generic = {.name = "generic", .layout = QD_OCTETS, .granule = 8, .block = 32,
                            .grouped = &qd_grouped_products, .lacks = lacks, .tables = tables, .multiply = multiply,
                            .store = store};
