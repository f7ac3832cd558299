/* Products of grouped codes in plain C, see grouped.h, and the call that chooses a unit's. */
#define LANES 4
#define TOKENS 4
#define TO_FLOATS(bytes) (vector){(bytes)[0], (bytes)[1], (bytes)[2], (bytes)[3]}
#define PRODUCTS qd_grouped_products
#define PRODUCT qd_grouped_product
#define LAY_OUT qd_grouped_lay_out
#include "grouped.h"

#define ROWS_OF_A_THREAD 64 /* worth waking it for */

/* Compute y [tokens, outputs] = x [tokens, inputs] W^T with the instructions of a unit; `laid` has
 * room for what `qd_grouped_room` counts. Channels of a group are a multiple of 32. */
int qd_grouped_linear(int unit, const qd_grouped *w, const float *x, float *y, int64_t tokens,
                      float *laid, int threads) {
    const qd_unit *with = qd_unit_at(unit);
    if (!with || with->lacks()) return QD_NO_UNIT;
    if ((w->bits != 4 && w->bits != 8) || w->block % 32) return QD_BAD_ARGUMENT;
    const qd_product *by = with->grouped;
    if (threads > w->outputs / ROWS_OF_A_THREAD) threads = (int)(w->outputs / ROWS_OF_A_THREAD);
    if (threads < 1) threads = 1;
    int64_t share = (w->outputs + threads - 1) / threads;
    share += share % PAIR;
    for (int64_t m = 0; m < tokens; m += by->tokens) {
        int some = tokens - m < by->tokens ? (int)(tokens - m) : by->tokens;
        by->lay_out(w, x + m * w->inputs, some, laid);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
        for (int t = 0; t < threads; t++) {
            int64_t end = share * (t + 1) < w->outputs ? share * (t + 1) : w->outputs;
            by->multiply(w, laid, some, y + m * w->outputs, share * t, end);
        }
    }
    return QD_OK;
}

/* Count the floats of a block of tokens; a multiple of 16 lies where vectors may. */
int64_t qd_grouped_room(int unit, int64_t inputs) {
    const qd_unit *with = qd_unit_at(unit);
    return with ? (inputs + 31) / 32 * 32 * with->grouped->tokens : -QD_NO_UNIT;
}
