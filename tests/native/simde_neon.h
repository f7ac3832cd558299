/* Run the NEON unit on any processor: SIMDe (Debian: libsimde-dev) computes each instruction in
 * portable C. What release 0.7.4 lacks is written out below from Arm's description. */
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <math.h>
#include <simde/arm/neon.h>

static inline int32x4_t emulate_cvtnq_s32_f32(float32x4_t v) {
    float in[4];
    int32_t out[4];
    vst1q_f32(in, v);
    for (int i = 0; i < 4; i++)
        out[i] = fabsf(in[i]) < 2147483648.0f ? (int32_t)lrintf(in[i]) : INT32_MAX;
    return vld1q_s32(out);
}
#define vcvtnq_s32_f32 emulate_cvtnq_s32_f32
