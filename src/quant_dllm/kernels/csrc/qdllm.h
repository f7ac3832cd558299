/* Multiply by a weight of scaled binary planes without writing it out: y = x W^T + bias.
 *
 *     W[i, j] = sum_k a_k[i] c_k[j] B_k[i, j],   B = +-1, k over the planes of the block of channel j
 *
 * Words used in every file of this folder:
 *     segment   up to 128 neighbouring input channels of one block: what one table scale covers
 *     quad      4 neighbouring input channels; the 4 sign bits of a row are one nibble
 *     tile      32 neighbouring output channels ("rows")
 *     chunk     up to 16 tiles: what one thread works on at a time
 *     table     for one token and quad, the 16 sums +-v0 +-v1 +-v2 +-v3 of v = c_k * x, as bytes
 *     digit     a byte of a table entry: the high one, and the low one where it is wanted
 *     unit      the code for one instruction set; no function is shared between two units, since a
 *               linker may keep the copy that was compiled for the newer processor
 */
#ifndef QDLLM_H
#define QDLLM_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define QD_ABI 2
#define QD_MAGIC 0x4c4c4451u /* "QDLL" */
#define QD_ROWS 32           /* rows of a tile */
#define QD_SEGMENT 128       /* channels of a segment, at most */
#define QD_CHUNK 16           /* tiles of a chunk, at most */
#define QD_MOST_ORDER 8      /* planes of a block, at most */
#define QD_TOLERANCE 0.0095f  /* relative error of a segment above which low digits are added */
#define QD_SCALE_BYTES 64    /* row scales of a tile and plane: 32 float16 */

enum qd_error {
    QD_OK = 0,
    QD_BAD_ARGUMENT = 1,  /* sizes or orders that make no sense */
    QD_BAD_PACKED = 2,    /* not a packed weight of this ABI */
    QD_NO_UNIT = 3,       /* this processor lacks the instructions of the unit asked for */
    QD_SMALL_BUFFER = 4   /* a buffer is smaller than what was said to be needed */
};

enum qd_dtype { QD_FLOAT32 = 0, QD_BFLOAT16 = 1, QD_FLOAT16 = 2 };

/* Order of the sign bytes of a tile and plane. */
enum qd_layout {
    QD_OCTETS = 0, /* [octet of channels][32 rows], rows in the order of qd_octet_row */
    QD_WORDS = 1   /* [32 channels][row vector of 16][row] words of 4 bytes */
};

typedef struct {
    uint32_t start, width; /* input channels */
    uint32_t padded;       /* channels that tables are built for; those behind `width` count 0 */
    uint32_t order;        /* planes */
    uint32_t plane;        /* planes of the segments before it */
    uint32_t source;       /* bytes of a neutral row before it, and its planes' distance */
    uint32_t source_step;
    uint32_t column;       /* column scales of the blocks before it */
    uint32_t column_step;
    uint32_t scale;        /* row scales of the blocks before it */
    uint32_t before;       /* sum of padded of the segments before it */
    int32_t exponent;      /* of two: times it, sums of planes are under 2^15, column scales 2^14 */
    uint64_t channels;     /* sum of order * padded of the segments before it */
} qd_segment;

/* A packed weight: this header, the segments, the column scales, then the chunks.
 * A chunk is [segment][tile][plane]{32 row scales, float16; signs}: one stream in the order of use. */
typedef struct {
    uint32_t magic, abi, layout, chunk_tiles;
    uint32_t in_features, out_features, block_size, blocks;
    uint32_t segments, planes;  /* planes: over all segments */
    uint64_t channels;          /* sum of order * padded over all segments */
    uint64_t columns, chunks;   /* byte offsets */
    uint64_t tile_bytes;        /* of all segments of one tile */
    uint64_t bytes;
} qd_packed;

/* Some segments of one chunk, and one block of tokens: what a unit multiplies in one go. */
typedef struct {
    const qd_segment *segments;
    int count;                /* segments */
    int tiles, tokens;
    const uint8_t *weights;   /* the chunk, from the first of the segments */
    const uint8_t *tables;    /* of the block of tokens, from the first of the segments */
    size_t low;               /* how far behind a table of high digits that of low digits is */
    const uint8_t *has_low;   /* whether the low digits of a segment count: what `tables` returned */
    const float *scales;      /* of the tables: [plane][token] */
    const float *columns;     /* column scales of all segments */
    float *sums;              /* [tile][token][32], added to */
} qd_span;

/* A weight of grouped codes, see grouped.h. */
typedef struct {
    const uint8_t *codes;  /* [outputs, row_bytes] */
    const float *scales;   /* [outputs, groups] */
    const uint8_t *below;  /* [finer rows, row_bytes]; NULL: there is none */
    const int32_t *rank;   /* of each row among the finer ones, or -1; NULL as well */
    int64_t outputs, inputs, block, row_bytes, groups;
    int bits;              /* of a code: 4 or 8 */
} qd_grouped;

/* How a unit multiplies grouped codes. */
typedef struct {
    int tokens; /* of a block */
    void (*lay_out)(const qd_grouped *w, const float *x, int tokens, float *laid);
    void (*multiply)(const qd_grouped *w, const float *laid, int tokens, float *y, int64_t first,
                     int64_t end);
} qd_product;

extern const qd_product qd_grouped_products, qd_grouped_avx2_products, qd_grouped_avx512_products;

typedef struct qd_unit qd_unit;
struct qd_unit {
    const char *name;
    const qd_unit *precise; /* the unit that takes precise calls; NULL: this one */
    int thin;               /* it also takes weights of up to so many planes for 8 channels */
    enum qd_layout layout;
    uint32_t granule;       /* `padded` is a multiple of it */
    int block;              /* tokens of a full block: a power of two */
    int ragged, most;       /* so many tokens and more, up to the most, are a block of any length;
                             * 0: none is. The others are cut into powers of two */
    const qd_product *grouped;
    const char *(*lacks)(void); /* the instruction that this processor lacks, or NULL */
    /* Build the tables of a segment for a block of tokens whose rows of x are `stride` elements
     * apart, and their scales. Return whether low digits were written: where `precise` asks for
     * them, and where one digit would miss QD_TOLERANCE because one channel towers over the rest; a
     * unit that has more to tell itself returns numbers over 1. */
    int (*tables)(const qd_segment *s, const float *columns, const void *x, enum qd_dtype dtype,
                  size_t stride, int tokens, int precise, uint8_t *tables, size_t low,
                  float *scales);
    void (*multiply)(const qd_span *span);
    /* Write `rows` sums and a bias (or NULL) as `dtype`; `y` and `bias` point at the first row. */
    void (*store)(const float *sums, const void *bias, int rows, enum qd_dtype dtype, void *y);
};

extern const qd_unit qd_generic;
extern const qd_unit qd_avx2, qd_avx512, qd_amx, qd_neon; /* on their own machines */
extern const qd_unit qd_avx512_lookups; /* what AVX-512 does for few tokens and precise calls */

/* Best unit first. */
const qd_unit *qd_unit_at(int index);
const qd_unit *qd_unit_for(const qd_packed *packed);

static inline const qd_segment *qd_segments(const qd_packed *p) {
    return (const qd_segment *)(p + 1);
}

/* Bytes of a segment in one tile: scales and signs of its planes. */
static inline size_t qd_tile_bytes(const qd_segment *s) {
    return (size_t)s->order * (QD_SCALE_BYTES + s->padded * (QD_ROWS / 8));
}

/* One digit rounds each of a token's quads by up to 1/2 of a unit, largest quad / 127, so that with
 * largest^2 / sum v^2 = ratio the relative error is sqrt(quads * ratio / 12) / 127. Return the ratio
 * at which that is QD_TOLERANCE. */
static inline float qd_worst_ratio(uint32_t padded) {
    return QD_TOLERANCE * QD_TOLERANCE * 127 * 127 * 12 * 4 / (float)padded;
}

/* Return the scale of a table whose largest entry is `largest`: NaN where an input was not finite.
 * Add largest^2 / sum v^2 to `ratio`; where the squares leave the floats, more than any worst ratio. */
static inline float qd_table_scale(float largest, float squares, float *ratio) {
    int known = squares >= 0x1p-126f && squares < INFINITY;
    if (largest > 0) *ratio += known ? largest * largest / squares : 1e9f;
    return largest < INFINITY && squares == squares ? largest / 127 : NAN;
}

/* Row of a tile that byte `position` of an octet stands for: even bytes are rows 0-15, odd ones
 * 16-31, in the order in which `vpunpck[lh]wd` leaves 16-bit sums. */
static inline int qd_octet_row(int position) {
    int word = position / 2;
    return (position & 1) * 16 + ((word >> 2) & 1) * 8 + (word >> 3) * 4 + (word & 3);
}

#endif
