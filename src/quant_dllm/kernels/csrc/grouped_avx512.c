/* Products of grouped codes with AVX-512: see grouped.h. */
#ifndef QD_SIMDE
#include <immintrin.h>
#define TO_FLOATS(bytes) ((vector)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)(bytes))))
#else
#define TO_FLOATS(bytes) __builtin_convertvector(bytes, vector)
#endif

#define LANES 16
#define TOKENS 8
#define PRODUCTS qd_grouped_avx512_products
#define PRODUCT qd_grouped_avx512_product
#define LAY_OUT qd_grouped_avx512_lay_out
#include "grouped.h"
