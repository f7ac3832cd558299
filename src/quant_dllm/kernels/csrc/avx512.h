/* What the units of 512 bits have in common. Every function is static and inlined: each unit has its
 * own copy, compiled for its own instructions. */
#ifndef QDLLM_AVX512_H
#define QDLLM_AVX512_H

#ifndef QD_SIMDE /* tests/native emulates the instructions */
#include <immintrin.h>
#endif

#include "qdllm.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define VECTOR 16 /* numbers of a register, and rows of a half tile */

INLINE __mmask16 first(int count) {
    return (__mmask16)(count >= VECTOR ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

/* Load `count` numbers and zeros behind them. */
INLINE __m512 load16(const void *x, enum qd_dtype dtype, size_t at, int count) {
    __mmask16 mask = first(count);
    if (dtype == QD_FLOAT32) return _mm512_maskz_loadu_ps(mask, (const float *)x + at);
    __m256i raw = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)x + at);
    if (dtype == QD_FLOAT16) return _mm512_cvtph_ps(raw);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

/* Round to bfloat16, in the upper halves of the lanes. */
INLINE __m512i upper_bfloat16(__m512 value) {
    const __m512i one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7fff);
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, half));
    bits = _mm512_mask_blend_epi32(nan, bits, _mm512_set1_epi32(0x7fc00000));
    return _mm512_and_si512(bits, _mm512_set1_epi32((int)0xffff0000));
}

#endif
