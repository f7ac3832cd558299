/* Run the AMX unit on any processor: eight tiles of 16 rows of 64 bytes. */
#include "simde_avx512.h"

typedef struct {
    uint8_t rows[8], cells[8][16][64];
} tiles_t;
static _Thread_local tiles_t tiles;

#define tile_configure(c) memcpy(tiles.rows, (c)->rows, 8)
#define tile_release() memset(&tiles, 0xaa, sizeof tiles)
#define tile_zero(t) memset(tiles.cells[t], 0, sizeof tiles.cells[t])

static inline void tile_load(int t, const void *from, size_t stride) {
    FOR(tiles.rows[t]) memcpy(tiles.cells[t][i], (const char *)from + i * stride, 64);
}
static inline void tile_store(int t, void *to, size_t stride) {
    FOR(tiles.rows[t]) memcpy((char *)to + i * stride, tiles.cells[t][i], 64);
}
static inline float bfloat16(const uint8_t *from) {
    uint32_t bits = (uint32_t)(from[0] | from[1] << 8) << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}
static inline void tile_dot(int sum, int a, int b) {
    for (int row = 0; row < tiles.rows[sum]; row++) {
        float out[16];
        memcpy(out, tiles.cells[sum][row], 64);
        for (int depth = 0; depth < 32; depth++)
            FOR(16) out[i] += bfloat16(tiles.cells[a][row] + depth * 2) *
                              bfloat16(tiles.cells[b][depth / 2] + i * 4 + depth % 2 * 2);
        memcpy(tiles.cells[sum][row], out, 64);
    }
}
