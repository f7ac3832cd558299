/* Numbers in and out of registers of 256 bits. Every function is static. */
#ifndef QDLLM_AVX2_H
#define QDLLM_AVX2_H

#include <immintrin.h>
#include <string.h>

#include "qdllm.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE __m256 load8(const void *x, enum qd_dtype dtype, size_t at) {
    if (dtype == QD_FLOAT32) return _mm256_loadu_ps((const float *)x + at);
    __m128i raw = _mm_loadu_si128((const __m128i *)((const uint16_t *)x + at));
    if (dtype == QD_FLOAT16) return _mm256_cvtph_ps(raw);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}

INLINE __m128i to_bfloat16(__m256 value) {
    __m256i bits = _mm256_castps_si256(value), one = _mm256_set1_epi32(1);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256 nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    bits = _mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7fc00000), _mm256_castps_si256(nan));
    bits = _mm256_srli_epi32(bits, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}

INLINE void store8(void *y, enum qd_dtype dtype, size_t at, __m256 value) {
    __m128i *half = (__m128i *)((uint16_t *)y + at);
    if (dtype == QD_FLOAT32) _mm256_storeu_ps((float *)y + at, value);
    else if (dtype == QD_FLOAT16) _mm_storeu_si128(half, _mm256_cvtps_ph(value, 0));
    else _mm_storeu_si128(half, to_bfloat16(value));
}

INLINE void store_as(const float *sums, const void *bias, enum qd_dtype dtype, void *y) {
    UNROLL for (int r = 0; r < QD_ROWS; r += 8) {
        __m256 value = _mm256_loadu_ps(sums + r);
        if (bias) value = _mm256_add_ps(value, load8(bias, dtype, r));
        store8(y, dtype, r, value);
    }
}

static void store(const float *sums, const void *bias, int rows, enum qd_dtype dtype, void *y) {
    size_t item = dtype == QD_FLOAT32 ? 4 : 2;
    float short_bias[QD_ROWS] = {0}, short_y[QD_ROWS];
    void *out = rows == QD_ROWS ? y : short_y;
    if (bias && rows < QD_ROWS) bias = memcpy(short_bias, bias, rows * item);
    if (dtype == QD_FLOAT32) store_as(sums, bias, QD_FLOAT32, out);
    else if (dtype == QD_FLOAT16) store_as(sums, bias, QD_FLOAT16, out);
    else store_as(sums, bias, QD_BFLOAT16, out);
    if (rows < QD_ROWS) memcpy(y, short_y, rows * item);
}

#endif
