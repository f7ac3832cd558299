/* Products of grouped codes with AVX2: see grouped.h. */
#include <immintrin.h>

#define LANES 8
#define TOKENS 4
#define TO_FLOATS(bytes) \
    ((vector)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)(bytes)))))
#define PRODUCTS qd_grouped_avx2_products
#define PRODUCT qd_grouped_avx2_product
#define LAY_OUT qd_grouped_avx2_lay_out
#include "grouped.h"
