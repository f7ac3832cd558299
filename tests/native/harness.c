/* Pack, multiply and unpack in buffers of exactly the size that is asked for, so that a sanitizer
 * sees every byte too far. Values are held against the product in double precision, coarsely: one
 * token and few rows miss more than the many that a tolerance is meant for. Exit status 1: a value
 * is wrong. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"

int qd_pack(int, void *, int64_t, uint8_t *, uint16_t *, uint16_t *, uint8_t *, int64_t, int64_t,
            int64_t, int64_t, int);
int qd_unpack(const void *, uint8_t *, uint16_t *, uint16_t *, uint8_t *, int);
int64_t qd_packed_bytes(int, const uint8_t *, int64_t, int64_t, int64_t, int64_t);
int64_t qd_workspace(const void *, int, int64_t, int);
int qd_linear(const void *, int, const void *, const void *, void *, int64_t, int, int, void *,
              int64_t, int);
int64_t qd_grouped_room(int, int64_t);
int qd_grouped_linear(int, const qd_grouped *, const float *, float *, int64_t, float *, int);

typedef struct {
    int out, in, block, blocks;
    uint8_t orders[8];
} shape;

static const shape shapes[] = {
    {1, 7, 128, 1, {2}},          {33, 72, 20, 4, {2, 3, 1, 2}}, {97, 300, 128, 3, {4, 2, 1}},
    {64, 700, 256, 3, {2, 1, 2}}, {100, 264, 64, 5, {1, 2, 3, 8, 2}},
    {777, 160, 32, 5, {3, 1, 2, 4, 1}}, {33, 1024, 128, 8, {2, 2, 3, 2, 2, 3, 2, 2}},
};
static const int token_counts[] = {0, 1, 3, 7, 16, 33, 130, 512};

static uint32_t state = 1;
static uint32_t dice(void) { return state = state * 1664525u + 1013904223u, state >> 8; }
static uint16_t half_near_one(void) { return (uint16_t)(0x3800 + dice() % 0x800); }
static size_t width_of(const shape *s, int b) {
    int left = s->in - b * s->block;
    return (size_t)(left < s->block ? left : s->block);
}

typedef struct {
    size_t bytes, planes, columns; /* of a row, of a row, of all */
    uint8_t *signs;
    uint16_t *rows, *scales;
    uint8_t *orders;
    double *values, *squares; /* [out, in]: the planes' sum, and the sum of their squares */
} weight;

static weight draw(const shape *s) {
    weight w = {0};
    for (int b = 0; b < s->blocks; b++) {
        w.bytes += s->orders[b] * ((width_of(s, b) + 7) / 8);
        w.planes += s->orders[b];
        w.columns += s->orders[b] * width_of(s, b);
    }
    w.signs = calloc(s->out, w.bytes);
    w.rows = malloc(s->out * w.planes * 2);
    w.scales = malloc(w.columns * 2);
    w.orders = memcpy(malloc(s->blocks), s->orders, s->blocks);
    w.values = calloc((size_t)s->out * s->in, sizeof(double));
    w.squares = calloc((size_t)s->out * s->in, sizeof(double));
    for (size_t i = 0; i < s->out * w.planes; i++) w.rows[i] = half_near_one();
    for (size_t i = 0; i < w.columns; i++) w.scales[i] = half_near_one();
    for (int row = 0; row < s->out; row++) {
        uint8_t *at = w.signs + row * w.bytes;
        size_t plane = 0, column = 0;
        for (int b = 0; b < s->blocks; b++)
            for (int k = 0; k < s->orders[b]; k++, plane++) {
                size_t width = width_of(s, b);
                double a = qd_half_to_float(w.rows[row * w.planes + plane]);
                for (size_t j = 0; j < width; j++, column++) {
                    int plus = dice() & 1;
                    double v = a * qd_half_to_float(w.scales[column]);
                    at[j / 8] |= (uint8_t)(plus << j % 8);
                    w.values[(size_t)row * s->in + b * s->block + j] += plus ? v : -v;
                    w.squares[(size_t)row * s->in + b * s->block + j] += v * v;
                }
                at += (width + 7) / 8;
            }
    }
    return w;
}

static void release(weight *w) {
    free(w->signs), free(w->rows), free(w->scales), free(w->orders), free(w->values);
    free(w->squares);
}

static void number(void *x, int dtype, size_t i, float value) {
    union { float value; uint32_t bits; } raw = {value};
    if (dtype == QD_FLOAT32) ((float *)x)[i] = value;
    else if (dtype == QD_BFLOAT16) ((uint16_t *)x)[i] = (uint16_t)(raw.bits >> 16);
    else ((uint16_t *)x)[i] = (uint16_t)((raw.bits >> 16 & 0x8000) | ((raw.bits & 0x7fffffff) - (112u << 23)) >> 13);
}

static double value_of(const void *x, int dtype, size_t i) {
    if (dtype == QD_FLOAT32) return ((const float *)x)[i];
    uint16_t bits = ((const uint16_t *)x)[i];
    if (dtype == QD_FLOAT16) return qd_half_to_float(bits);
    union { uint32_t bits; float value; } raw = {(uint32_t)bits << 16};
    return raw.value;
}

static int multiply(const shape *s, const weight *w, const void *packed, int unit, int tokens,
                    int dtype, int precise, int threads) {
    size_t item = dtype == QD_FLOAT32 ? 4 : 2, count = (size_t)tokens * s->in;
    void *x = malloc(count * item), *y = malloc((size_t)tokens * s->out * item);
    void *bias = malloc(s->out * item);
    int64_t room = qd_workspace(packed, unit, tokens, threads);
    void *workspace = aligned_alloc(64, (room + 63) / 64 * 64);
    for (size_t i = 0; i < count; i++)
        number(x, dtype, i, ((int)(dice() % 2048) - 1023) / 512.0f * (i % s->in == 3 ? 40 : 1) + 0.001f);
    for (int i = 0; i < s->out; i++) number(bias, dtype, i, 0.5f);
    int error = qd_linear(packed, unit, x, bias, y, tokens, dtype, precise, workspace, room, threads);
    double miss = 0, size = 0;
    for (int m = 0; m < tokens && !error; m++)
        for (int row = 0; row < s->out; row++) {
            double exact = value_of(bias, dtype, row), energy = exact * exact;
            for (int j = 0; j < s->in; j++) {
                double v = value_of(x, dtype, (size_t)m * s->in + j);
                exact += v * w->values[(size_t)row * s->in + j];
                energy += v * v * w->squares[(size_t)row * s->in + j]; /* planes may cancel */
            }
            double found = value_of(y, dtype, (size_t)m * s->out + row);
            miss += (found - exact) * (found - exact), size += energy;
        }
    free(x), free(y), free(bias), free(workspace);
    if (!error && sqrt(miss) <= (precise ? 0.01 : 0.03) * sqrt(size)) return 0;
    fprintf(stderr, "%s: %d x %d, %d tokens, dtype %d, precise %d, %d threads: error %d, relative %g\n",
            qd_unit_at(unit)->name, s->out, s->in, tokens, dtype, precise, threads, error,
            sqrt(miss / size));
    return 1;
}

static int run(const shape *s, int unit) {
    weight w = draw(s);
    int64_t bytes = qd_packed_bytes(unit, w.orders, s->blocks, s->in, s->out, s->block);
    void *packed = aligned_alloc(64, (bytes + 63) / 64 * 64);
    int wrong = qd_pack(unit, packed, bytes, w.signs, w.rows, w.scales, w.orders, s->blocks, s->in,
                        s->out, s->block, 2) != QD_OK;
    for (size_t t = 0; t < sizeof token_counts / sizeof *token_counts && !wrong; t++)
        for (int variant = 0; variant < 4; variant++)
            wrong |= multiply(s, &w, packed, unit, token_counts[t], variant % 3, variant % 2,
                              variant < 2 ? 1 : token_counts[t] < 512 ? 2 : 16);
    weight back = {.signs = calloc(s->out, w.bytes), .rows = malloc(s->out * w.planes * 2),
                   .scales = malloc(w.columns * 2), .orders = malloc(s->blocks)};
    qd_unpack(packed, back.signs, back.rows, back.scales, back.orders, 2);
    wrong |= memcmp(back.signs, w.signs, s->out * w.bytes) || memcmp(back.rows, w.rows, s->out * w.planes * 2)
          || memcmp(back.scales, w.scales, w.columns * 2) || memcmp(back.orders, w.orders, s->blocks);
    free(packed), release(&w), release(&back);
    return wrong;
}

/* Grouped codes: buffers of exact size, a last group and a last vector that are short. */
static int run_grouped(int unit, int bits, int inputs, int outputs, int tokens, int finer) {
    const int64_t bytes = (inputs * bits + 7) / 8, groups = (inputs + 31) / 32;
    const int rows = finer ? (outputs + 2) / 3 : 0;
    uint8_t *codes = malloc(bytes * outputs), *below = malloc(bytes * rows + 1);
    float *scales = malloc(4 * groups * outputs), *x = malloc(4 * (size_t)inputs * tokens);
    float *y = malloc(4 * (size_t)outputs * tokens);
    int32_t *rank = malloc(4 * outputs);
    for (int64_t i = 0; i < bytes * outputs; i++) codes[i] = (uint8_t)dice();
    for (int64_t i = 0; i < bytes * rows; i++) below[i] = (uint8_t)dice();
    for (int64_t i = 0; i < groups * outputs; i++) scales[i] = (float)(dice() % 100) / 100 - 0.5f;
    for (int i = 0; i < inputs * tokens; i++) x[i] = (float)(dice() % 200) / 100 - 1;
    for (int i = 0; i < outputs; i++) rank[i] = i % 3 ? -1 : i / 3;
    qd_grouped w = {codes, scales, finer ? below : NULL, finer ? rank : NULL, outputs, inputs, 32,
                    bytes, groups, bits};
    float *laid = aligned_alloc(64, 4 * (size_t)qd_grouped_room(unit, inputs));
    int wrong = qd_grouped_linear(unit, &w, x, y, tokens, laid, 2);
    for (int i = 0; i < outputs && !wrong; i++)
        for (int m = 0; m < tokens; m++) {
            double sum = 0, size = 0;
            for (int j = 0; j < inputs; j++) {
                int at = bits == 4 ? j / 2 : j, shift = bits == 4 ? j % 2 * 4 : 0;
                int mask = bits == 4 ? 15 : 255;
                double code = (codes[i * bytes + at] >> shift & mask) - (bits == 4 ? 8 : 128);
                if (finer && rank[i] >= 0)
                    code += (below[rank[i] * bytes + at] >> shift & mask) / 16.0;
                double term = code * scales[i * groups + j / 32] * x[m * inputs + j];
                sum += term;
                size += fabs(term);
            }
            wrong |= fabs(y[m * outputs + i] - sum) > 1e-5 * size;
        }
    if (wrong) printf("grouped %d bits %d inputs %d tokens: wrong\n", bits, inputs, tokens);
    free(codes), free(below), free(scales), free(x), free(y), free(rank), free(laid);
    return wrong;
}

int main(void) {
    int wrong = 0;
    for (int unit = 0; qd_unit_at(unit); unit++) {
        if (qd_unit_at(unit)->lacks()) continue;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) wrong |= run(shapes + i, unit);
        for (int inputs = 6; inputs < 140; inputs += 29)
            for (int tokens = 1; tokens < 12; tokens += 3) {
                wrong |= run_grouped(unit, 8, inputs, 37, tokens, 0);
                wrong |= run_grouped(unit, 4, inputs, 130, tokens, 0);
                wrong |= run_grouped(unit, 4, inputs, 130, tokens, 1);
            }
        printf("%s\n", qd_unit_at(unit)->name);
    }
    return wrong;
}
