/* Run the AMX unit on any processor: eight tiles of 16 rows of 64 bytes. */
#include "simde_avx512.h"

typedef struct {
    uint8_t rows[8], cells[8][16][64];
} tiles_t;
static _Thread_local tiles_t tiles;

#define tile_configure(c) memcpy(tiles.rows, (c)->rows, 8)
#define tile_release() memset(&tiles, 0xaa, sizeof tiles)
#define tile_zero(t) memset(tiles.cells[t], 0, sizeof tiles.cells[t])

static inline void tile_load(int t, const uint8_t *from, size_t stride) {
    FOR(tiles.rows[t]) memcpy(tiles.cells[t][i], from + i * stride, 64);
}
static inline void tile_store(int t, int32_t *to) {
    FOR(tiles.rows[t]) memcpy(to + i * 16, tiles.cells[t][i], 64);
}
static inline void tile_dot(int sum, int a, int b) {
    for (int row = 0; row < tiles.rows[sum]; row++) {
        int32_t out[16];
        memcpy(out, tiles.cells[sum][row], 64);
        for (int depth = 0; depth < 64; depth++)
            FOR(16) out[i] += (int8_t)tiles.cells[a][row][depth] *
                              (int8_t)tiles.cells[b][depth / 4][i * 4 + depth % 4];
        memcpy(tiles.cells[sum][row], out, 64);
    }
}
