/* Run the AVX-512 unit on any processor: SIMDe (Debian: libsimde-dev) computes each instruction in
 * portable C. What release 0.7.4 lacks is written out below from Intel's description. */
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <math.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <string.h>

#define __builtin_cpu_supports(feature) 1
#define __mmask16 uint16_t
#define __mmask32 uint32_t

#define ELEMENTS(type, count, name, vector) \
    type name[count];                       \
    memcpy(name, &(vector), sizeof name)
#define VECTOR_OF(kind, name)            \
    __extension__({                      \
        kind vector_;                    \
        memcpy(&vector_, name, sizeof vector_); \
        vector_;                         \
    })
#define FOR(count) for (int i = 0; i < (count); i++)

static inline __m512 emulate_maskz_loadu_ps(uint16_t mask, const float *from) {
    float out[16];
    FOR(16) out[i] = mask >> i & 1 ? from[i] : 0;
    return VECTOR_OF(__m512, out);
}
static inline __m256i emulate_maskz_loadu_epi16(uint16_t mask, const uint16_t *from) {
    uint16_t out[16];
    FOR(16) out[i] = mask >> i & 1 ? from[i] : 0;
    return VECTOR_OF(__m256i, out);
}
static inline void emulate_mask_storeu_ps(float *to, uint16_t mask, __m512 v) {
    ELEMENTS(float, 16, in, v);
    FOR(16) if (mask >> i & 1) to[i] = in[i];
}
static inline void emulate_mask_storeu_epi16(uint16_t *to, uint16_t mask, __m256i v) {
    ELEMENTS(uint16_t, 16, in, v);
    FOR(16) if (mask >> i & 1) to[i] = in[i];
}
static inline __m512i emulate_cvtepu16_epi32(__m256i v) {
    ELEMENTS(uint16_t, 16, in, v);
    uint32_t out[16];
    FOR(16) out[i] = in[i];
    return VECTOR_OF(__m512i, out);
}
static inline __m256i emulate_cvtepi32_epi16(__m512i v) {
    ELEMENTS(uint32_t, 16, in, v);
    uint16_t out[16];
    FOR(16) out[i] = (uint16_t)in[i];
    return VECTOR_OF(__m256i, out);
}
static inline __m512i emulate_cvtps_epi32(__m512 v) {
    ELEMENTS(float, 16, in, v);
    int32_t out[16];
    FOR(16) out[i] = fabsf(in[i]) < 2147483648.0f ? (int32_t)lrintf(in[i]) : INT32_MIN;
    return VECTOR_OF(__m512i, out);
}
static inline __m512 emulate_cvtepi32_ps(__m512i v) {
    ELEMENTS(int32_t, 16, in, v);
    float out[16];
    FOR(16) out[i] = (float)in[i];
    return VECTOR_OF(__m512, out);
}
static inline __m512 emulate_cvtph_ps(__m256i v) {
    ELEMENTS(__m128i, 2, in, v);
    __m256 out[2] = {_mm256_cvtph_ps(in[0]), _mm256_cvtph_ps(in[1])};
    return VECTOR_OF(__m512, out);
}
static inline __m256i emulate_cvtps_ph(__m512 v) {
    ELEMENTS(__m256, 2, in, v);
    __m128i out[2] = {_mm256_cvtps_ph(in[0], 0), _mm256_cvtps_ph(in[1], 0)};
    return VECTOR_OF(__m256i, out);
}
static inline __m512 emulate_shuffle_f32x4(__m512 a, __m512 b, int select) {
    ELEMENTS(__m128, 4, left, a);
    ELEMENTS(__m128, 4, right, b);
    __m128 out[4] = {left[select & 3], left[select >> 2 & 3], right[select >> 4 & 3],
                     right[select >> 6 & 3]};
    return VECTOR_OF(__m512, out);
}
static inline float emulate_reduce_max_ps(__m512 v) {
    ELEMENTS(float, 16, in, v);
    float most = in[0];
    FOR(16) most = in[i] > most ? in[i] : most;
    return most;
}
static inline float emulate_reduce_add_ps(__m512 v) {
    ELEMENTS(float, 16, in, v);
    float sum = 0;
    FOR(16) sum += in[i];
    return sum;
}
static inline int32_t emulate_reduce_add_epi32(__m512i v) {
    ELEMENTS(int32_t, 16, in, v);
    int32_t sum = 0;
    FOR(16) sum += in[i];
    return sum;
}
static inline uint32_t emulate_test_epi16_mask(__m512i a, __m512i b) {
    ELEMENTS(uint16_t, 32, x, a);
    ELEMENTS(uint16_t, 32, y, b);
    uint32_t mask = 0;
    FOR(32) mask |= (uint32_t)((x[i] & y[i]) != 0) << i;
    return mask;
}
static inline uint32_t emulate_testn_epi16_mask(__m512i a, __m512i b) {
    return ~emulate_test_epi16_mask(a, b);
}
static inline __m512i emulate_add_epi16(__m512i a, __m512i b) { /* wraps around */
    ELEMENTS(uint16_t, 32, x, a);
    ELEMENTS(uint16_t, 32, y, b);
    FOR(32) x[i] = (uint16_t)(x[i] + y[i]);
    return VECTOR_OF(__m512i, x);
}
static inline __m512i emulate_mask_sub_epi16(__m512i from, uint32_t mask, __m512i a, __m512i b) {
    ELEMENTS(uint16_t, 32, out, from);
    ELEMENTS(uint16_t, 32, x, a);
    ELEMENTS(uint16_t, 32, y, b);
    FOR(32) if (mask >> i & 1) out[i] = (uint16_t)(x[i] - y[i]);
    return VECTOR_OF(__m512i, out);
}
static inline __m512i emulate_madd_epi16(__m512i a, __m512i b) {
    ELEMENTS(int16_t, 32, x, a);
    ELEMENTS(int16_t, 32, y, b);
    int32_t out[16];
    FOR(16) out[i] = x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
    return VECTOR_OF(__m512i, out);
}

#undef _mm512_add_epi16
#undef _mm512_madd_epi16
#undef _mm512_test_epi16_mask
#define _mm512_add_epi16 emulate_add_epi16
#define _mm512_madd_epi16 emulate_madd_epi16
#define _mm512_mask_sub_epi16 emulate_mask_sub_epi16
#define _mm512_test_epi16_mask emulate_test_epi16_mask
#define _mm512_testn_epi16_mask emulate_testn_epi16_mask
#define _mm512_reduce_add_epi32 emulate_reduce_add_epi32
#define _mm512_maskz_loadu_ps emulate_maskz_loadu_ps
#define _mm256_maskz_loadu_epi16 emulate_maskz_loadu_epi16
#define _mm512_mask_storeu_ps emulate_mask_storeu_ps
#define _mm256_mask_storeu_epi16 emulate_mask_storeu_epi16
#define _mm512_cvtepu16_epi32 emulate_cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulate_cvtepi32_epi16
#define _mm512_cvtps_epi32 emulate_cvtps_epi32
#define _mm512_cvtepi32_ps emulate_cvtepi32_ps
#define _mm512_cvtph_ps emulate_cvtph_ps
#define _mm512_cvtps_ph(v, rounding) emulate_cvtps_ph(v)
#define _mm512_shuffle_f32x4 emulate_shuffle_f32x4
#define _mm512_reduce_max_ps emulate_reduce_max_ps
#define _mm512_reduce_add_ps emulate_reduce_add_ps
