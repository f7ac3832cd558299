/* Pack and unpack: every sign byte of a tile is moved once, none is computed. */
#include "layout.h"

#include <string.h>

static uint32_t packed_width(uint32_t channels) { return (channels + 7) / 8; }

float qd_half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, body = half & 0x7fff;
    union { uint32_t bits; float value; } out;
    if (body >= 0x7c00) { /* infinity, NaN */
        out.bits = sign | 0x7f800000u | (body & 0x3ff) << 13;
    } else if (body < 0x400) { /* subnormal: a float's subnormals may be flushed to zero */
        out.value = (float)body * 0x1p-24f;
        out.bits |= sign;
    } else {
        out.bits = sign | ((body << 13) + (112u << 23));
    }
    return out.value;
}

static uint16_t float_to_half(float value) { /* of what was a half before */
    union { float value; uint32_t bits; } in = {value};
    uint16_t sign = (uint16_t)(in.bits >> 16 & 0x8000);
    in.bits &= 0x7fffffffu;
    if (in.bits >= 0x7f800000u) return sign | 0x7c00 | (uint16_t)(in.bits >> 13 & 0x3ff);
    if (in.bits < (113u << 23)) return sign | (uint16_t)(in.value * 0x1p24f);
    return sign | (uint16_t)((in.bits - (112u << 23)) >> 13);
}

static uint32_t segments_of(uint32_t width) { return (width + QD_SEGMENT - 1) / QD_SEGMENT; }

/* Walk over the blocks; write their segments where `out` is given. */
static void lay_segments(qd_packed *p, const uint8_t *orders, uint32_t granule, qd_segment *out) {
    uint32_t source = 0, scale = 0, column = 0, before = 0;
    p->segments = p->planes = 0;
    p->channels = p->tile_bytes = 0;
    for (uint32_t b = 0; b < p->blocks; b++) {
        uint32_t start = b * p->block_size, left = p->in_features - start;
        uint32_t width = left < p->block_size ? left : p->block_size, order = orders[b];
        for (uint32_t i = 0; i < segments_of(width); i++) {
            uint32_t at = i * QD_SEGMENT, rest = width - at;
            qd_segment s = {.start = start + at, .width = rest < QD_SEGMENT ? rest : QD_SEGMENT,
                            .order = order, .plane = p->planes, .source = source + at / 8,
                            .source_step = packed_width(width), .column = column + at,
                            .column_step = width, .scale = scale, .before = before,
                            .channels = p->channels};
            s.padded = (s.width + granule - 1) / granule * granule;
            if (out) out[p->segments] = s;
            before += s.padded;
            p->segments++;
            p->planes += order;
            p->channels += (uint64_t)order * s.padded;
            p->tile_bytes += qd_tile_bytes(&s);
        }
        source += order * packed_width(width);
        column += order * width;
        scale += order;
    }
}

static uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

int qd_lay_out(qd_packed *p, const qd_unit *unit, const uint8_t *orders, int64_t blocks,
               int64_t in_features, int64_t out_features, int64_t block_size) {
    const int64_t most = 1 << 28;
    if (in_features < 1 || out_features < 1 || block_size < 1) return QD_BAD_ARGUMENT;
    if (in_features > most || out_features > most || block_size > most) return QD_BAD_ARGUMENT;
    if (blocks != (in_features + block_size - 1) / block_size) return QD_BAD_ARGUMENT;
    if (block_size > QD_SEGMENT && block_size % 8) return QD_BAD_ARGUMENT;
    for (int64_t b = 0; b < blocks; b++)
        if (orders[b] < 1 || orders[b] > QD_MOST_ORDER) return QD_BAD_ARGUMENT;
    uint32_t tiles = (uint32_t)((out_features + QD_ROWS - 1) / QD_ROWS);
    *p = (qd_packed){.magic = QD_MAGIC, .abi = QD_ABI, .layout = unit->layout,
                     .in_features = (uint32_t)in_features, .out_features = (uint32_t)out_features,
                     .block_size = (uint32_t)block_size, .blocks = (uint32_t)blocks};
    /* several chunks a thread, or the last one is waited for */
    p->chunk_tiles = tiles >= 8 * QD_CHUNK ? QD_CHUNK : tiles / 8 ? tiles / 8 : 1;
    lay_segments(p, orders, unit->granule, NULL);
    p->columns = round_up(sizeof *p + p->segments * sizeof(qd_segment), 64);
    p->chunks = round_up(p->columns + p->channels * sizeof(float), 64);
    p->bytes = p->chunks + tiles * p->tile_bytes;
    return QD_OK;
}

typedef uint8_t bytes16 __attribute__((vector_size(16)));

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (bytes16){__VA_ARGS__})
#endif

/* Transpose 16 x 16 bytes: four times, interleave the upper half with the lower. */
static void transpose(bytes16 v[16]) {
    for (int round = 0; round < 4; round++) {
        bytes16 t[16];
        for (int i = 0; i < 8; i++) {
            bytes16 a = v[i], b = v[i + 8];
            t[2 * i] = SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            t[2 * i + 1] = SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                   31);
        }
        memcpy(v, t, sizeof t);
    }
}

/* One plane of a tile: up to 16 octets of 32 rows, in two squares. */
static void move_octets(uint8_t *signs, uint8_t *rows, size_t stride, uint32_t bytes, int count,
                        int back) {
    for (int half = 0; half < QD_ROWS; half += 16) {
        bytes16 square[16] = {{0}};
        if (back)
            for (uint32_t o = 0; o < bytes; o++)
                memcpy(&square[o], signs + o * QD_ROWS + half, 16);
        else
            for (int i = 0; i < 16; i++) {
                int row = qd_octet_row(half + i);
                if (row < count) memcpy(&square[i], rows + row * stride, bytes);
            }
        transpose(square);
        if (back)
            for (int i = 0; i < 16; i++) {
                int row = qd_octet_row(half + i);
                if (row < count) memcpy(rows + row * stride, &square[i], bytes);
            }
        else
            for (uint32_t o = 0; o < bytes; o++)
                memcpy(signs + o * QD_ROWS + half, &square[o], 16);
    }
}

static void move_words(uint8_t *signs, uint8_t *rows, size_t stride, uint32_t bytes, int count,
                       int back) {
    for (int row = 0; row < count; row++) {
        uint8_t *line = rows + (size_t)row * stride;
        for (uint32_t o = 0; o < bytes; o += 4) {
            uint8_t *word = signs + o * QD_ROWS + row * 4;
            uint32_t some = bytes - o < 4 ? bytes - o : 4;
            if (back)
                memcpy(line + o, word, some);
            else
                memcpy(word, line + o, some);
        }
    }
}

static void move_tile(const qd_packed *p, const qd_segment *s, uint8_t *unit, uint32_t first_row,
                      const qd_neutral *n, size_t bytes, size_t scales, int back) {
    uint32_t left = p->out_features - first_row, count = left < QD_ROWS ? left : QD_ROWS;
    for (uint32_t k = 0; k < s->order; k++) {
        uint16_t *packed_scales = (uint16_t *)unit;
        uint16_t *row_scales = n->row_scales + (size_t)first_row * scales + s->scale + k;
        for (uint32_t row = 0; row < count; row++) {
            if (back) row_scales[row * scales] = packed_scales[row];
            else packed_scales[row] = row_scales[row * scales];
        }
        uint8_t *rows = n->planes + (size_t)first_row * bytes + s->source + k * s->source_step;
        (p->layout == QD_WORDS ? move_words : move_octets)(
            unit + QD_SCALE_BYTES, rows, bytes, packed_width(s->width), (int)count, back);
        unit += QD_SCALE_BYTES + s->padded * (QD_ROWS / 8);
    }
}

static void move_chunk(const qd_packed *p, uint32_t chunk, const qd_neutral *n, size_t bytes,
                       size_t scales, int back) {
    uint32_t first = chunk * p->chunk_tiles;
    uint32_t all = (p->out_features + QD_ROWS - 1) / QD_ROWS, left = all - first;
    uint32_t tiles = left < p->chunk_tiles ? left : p->chunk_tiles;
    uint8_t *at = (uint8_t *)p + p->chunks + first * p->tile_bytes;
    for (uint32_t t = 0; t < tiles; t++) { /* neutral rows are long: pass over few of them */
        uint8_t *unit = at;
        for (uint32_t i = 0; i < p->segments; i++) {
            const qd_segment *s = qd_segments(p) + i;
            size_t size = qd_tile_bytes(s);
            move_tile(p, s, unit + t * size, (first + t) * QD_ROWS, n, bytes, scales, back);
            unit += tiles * size;
        }
    }
}

/* Row scales of a neutral row. */
static size_t scales_of(const qd_packed *p) {
    const qd_segment *last = qd_segments(p) + p->segments - 1;
    return last->scale + last->order;
}

static void move_all(const qd_packed *p, const qd_neutral *n, int threads, int back) {
    const qd_segment *last = qd_segments(p) + p->segments - 1;
    size_t bytes = last->source - (last->start % p->block_size) / 8
                 + (size_t)last->order * last->source_step;
    size_t scales = scales_of(p);
    uint32_t span = p->chunk_tiles * QD_ROWS, chunks = (p->out_features + span - 1) / span;
    (void)threads;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (uint32_t c = 0; c < chunks; c++) move_chunk(p, c, n, bytes, scales, back);
}

/* Say by which power of two the planes of a segment fill the range of 16-bit floats. */
static int exponent_of(const qd_segment *s, const float *columns, float largest_row) {
    float largest = 0;
    int row, column, order = 0;
    for (uint32_t j = 0; j < s->order * s->padded; j++)
        if (fabsf(columns[j]) > largest) largest = fabsf(columns[j]);
    frexpf(fminf(largest, 65504), &column);
    frexpf(fminf(largest_row, 65504), &row);
    while ((1u << order) < s->order) order++;
    int sums = 15 - row - column - order;
    return sums < 14 - column ? sums : 14 - column;
}

/* Find the largest row scale of each segment, and the exponent that follows. */
static void find_exponents(qd_packed *p, const qd_neutral *n, size_t scales) {
    qd_segment *segments = (qd_segment *)(p + 1);
    const float *columns = (const float *)((const uint8_t *)p + p->columns);
    const uint16_t *row_scales = n->row_scales;
    for (uint32_t row = 0; row < p->out_features; row++, row_scales += scales)
        for (qd_segment *s = segments; s < segments + p->segments; s++)
            for (uint32_t k = 0; k < s->order; k++) { /* halves without sign compare as numbers */
                int half = row_scales[s->scale + k] & 0x7fff;
                if (half > s->exponent) s->exponent = half;
            }
    for (qd_segment *s = segments; s < segments + p->segments; s++)
        s->exponent =
            exponent_of(s, columns + s->channels, qd_half_to_float((uint16_t)s->exponent));
}

void qd_fill(qd_packed *p, const qd_neutral *n, int threads) {
    uint32_t granule = p->layout == QD_WORDS ? 32 : 8;
    memset((uint8_t *)p + sizeof *p, 0, p->bytes - sizeof *p);
    lay_segments(p, n->orders, granule, (qd_segment *)(p + 1));
    float *columns = (float *)((uint8_t *)p + p->columns);
    for (uint32_t i = 0; i < p->segments; i++) {
        const qd_segment *s = qd_segments(p) + i;
        for (uint32_t k = 0; k < s->order; k++)
            for (uint32_t j = 0; j < s->width; j++)
                columns[s->channels + k * s->padded + j] =
                    qd_half_to_float(n->column_scales[s->column + k * s->column_step + j]);
    }
    find_exponents(p, n, scales_of(p));
    move_all(p, n, threads, 0);
}

void qd_restore(const qd_packed *p, const qd_neutral *n, int threads) {
    const float *columns = (const float *)((const uint8_t *)p + p->columns);
    for (uint32_t i = 0; i < p->segments; i++) {
        const qd_segment *s = qd_segments(p) + i;
        n->orders[s->start / p->block_size] = (uint8_t)s->order;
        for (uint32_t k = 0; k < s->order; k++)
            for (uint32_t j = 0; j < s->width; j++)
                n->column_scales[s->column + k * s->column_step + j] =
                    float_to_half(columns[s->channels + k * s->padded + j]);
    }
    move_all(p, n, threads, 1);
}
