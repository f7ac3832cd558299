/* Run the AMX unit on any processor: eight tiles of 16 rows of 64 bytes. */
#include "simde_avx512.h"

/* 16-bit floats, 32 of a register: computed in double precision, rounded once. */
typedef __m512i emulated_512h;
#define __m512h emulated_512h
#define _mm512_setzero_ph() _mm512_setzero_si512()
#define _mm512_castsi512_ph(v) (v)
#define _mm512_castph_si512(v) (v)
#define _mm512_mul_ph(a, b) emulate_fmadd_ph(a, b, _mm512_setzero_si512())
#define _mm512_fmadd_ph emulate_fmadd_ph

/* Sums wrap around; SIMDe adds signed numbers, which must not. */
static inline __m512i emulate_wrapping_add(__m512i a, __m512i b) {
    ELEMENTS(uint32_t, 16, x, a);
    ELEMENTS(uint32_t, 16, y, b);
    FOR(16) x[i] += y[i];
    return VECTOR_OF(__m512i, x);
}
#undef _mm512_add_epi32
#define _mm512_add_epi32 emulate_wrapping_add

static inline double half_to_double(uint16_t half) {
    int exponent = half >> 10 & 31, body = half & 1023;
    double value = exponent ? ldexp(1024 + body, exponent - 25) : ldexp(body, -24);
    if (exponent == 31) value = body ? NAN : INFINITY;
    return half & 0x8000 ? -value : value;
}
static inline uint16_t double_to_half(double value) {
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    int exponent;
    if (value != value) return sign | 0x7e00;
    if (fabs(value) >= 65520) return sign | 0x7c00;
    if (value == 0) return sign;
    frexp(value, &exponent);
    if (exponent < -13) exponent = -13;
    double units = nearbyint(ldexp(fabs(value), 11 - exponent));
    return sign | (uint16_t)((exponent + 13) * 1024 + (int)units);
}
static inline __m512i emulate_fmadd_ph(__m512i a, __m512i b, __m512i c) {
    ELEMENTS(uint16_t, 32, x, a);
    ELEMENTS(uint16_t, 32, y, b);
    ELEMENTS(uint16_t, 32, z, c);
    FOR(32) x[i] = double_to_half(half_to_double(x[i]) * half_to_double(y[i]) + half_to_double(z[i]));
    return VECTOR_OF(__m512i, x);
}

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
