/* Between the neutral layout of the file (docs/format.md) and the layout of a unit. */
#ifndef QDLLM_LAYOUT_H
#define QDLLM_LAYOUT_H

#include "qdllm.h"

/* The tensors of a weight, in the neutral layout, read or written. */
typedef struct {
    uint8_t *planes;          /* [out, bytes] */
    uint16_t *row_scales;     /* [out, planes], float16 */
    uint16_t *column_scales;  /* [columns], float16 */
    uint8_t *orders;          /* [blocks] */
} qd_neutral;

/* Fill the header; `p` may be a header alone. */
int qd_lay_out(qd_packed *p, const qd_unit *unit, const uint8_t *orders, int64_t blocks,
               int64_t in_features, int64_t out_features, int64_t block_size);
void qd_fill(qd_packed *p, const qd_neutral *neutral, int threads);
void qd_restore(const qd_packed *p, const qd_neutral *neutral, int threads);

float qd_half_to_float(uint16_t half);

#endif
