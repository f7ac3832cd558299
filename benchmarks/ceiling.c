/* How fast this processor runs the inner loop of a table kernel with all of its data in the
 * first-level cache: `rounds` times 16 look-ups for each of four tokens (AVX2), or 8 (AVX-512).
 * Returns the look-ups of one byte: one row, four channels, one token and plane each. */
#include <immintrin.h>
#include <stdint.h>

#define UNROLL _Pragma("GCC unroll 16")
#define HOLD(sum) __asm__("" : "+x"(sum))

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

double lookups(long rounds, uint8_t *data) {
    __m512i sum[8], one = _mm512_set1_epi8(1), index = _mm512_loadu_si512(data);
    UNROLL for (int m = 0; m < 8; m++) sum[m] = _mm512_setzero_si512();
    for (long r = 0; r < rounds; r++)
        UNROLL for (int step = 0; step < 4; step++)
            UNROLL for (int m = 0; m < 8; m++) {
                __m512i found;
                __asm__("vpermb %[table], %[index], %[found]\n\tvpdpbusd %[found], %[one], %[sum]"
                        : [sum] "+v"(sum[m]), [found] "=&v"(found)
                        : [index] "v"(index), [one] "v"(one),
                          [table] "m"(*(const __m512i_u *)(data + 64 * (step * 8 + m))));
            }
    UNROLL for (int m = 0; m < 8; m++) _mm512_storeu_si512(data + 64 * m, sum[m]);
    return (double)rounds * 4 * 8 * 64;
}

#else

double lookups(long rounds, uint8_t *data) {
    __m256i all[4], odd[4], index = _mm256_loadu_si256((const __m256i *)data);
    const __m256i odd_bytes = _mm256_set1_epi16(0x0100);
    index = _mm256_and_si256(index, _mm256_set1_epi8(15));
    UNROLL for (int m = 0; m < 4; m++) all[m] = odd[m] = _mm256_setzero_si256();
    for (long r = 0; r < rounds; r++)
        UNROLL for (int step = 0; step < 4; step++)
            UNROLL for (int m = 0; m < 4; m++) {
                const __m128i *at = (const __m128i *)(data + 16 * (step * 4 + m));
                __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128(at));
                __m256i found = _mm256_shuffle_epi8(entries, index);
                all[m] = _mm256_add_epi16(all[m], found);
                odd[m] = _mm256_add_epi16(odd[m], _mm256_maddubs_epi16(found, odd_bytes));
                HOLD(all[m]);
                HOLD(odd[m]);
            }
    UNROLL for (int m = 0; m < 4; m++) {
        _mm256_storeu_si256((__m256i *)(data + 64 * m), all[m]);
        _mm256_storeu_si256((__m256i *)(data + 64 * m + 32), odd[m]);
    }
    return (double)rounds * 4 * 4 * 32;
}

#endif
