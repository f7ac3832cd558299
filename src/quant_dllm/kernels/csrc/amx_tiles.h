/* The instructions on matrix tiles, and whether this processor and its system have them. */
#ifndef QDLLM_AMX_TILES_H
#define QDLLM_AMX_TILES_H

#include "avx512.h"

#ifndef QD_SIMDE
/* The compiler does not know that tiles read and write memory unless it is told. */
#define TILE(instruction, ...) __asm__ volatile(instruction __VA_ARGS__ : "memory")
#define tile_configure(c) TILE("ldtilecfg %0", ::"m"(*(c)))
#define tile_release() TILE("tilerelease", ::)
#define tile_zero(t) TILE("tilezero %%tmm%c0", ::"i"(t))
#define tile_load(t, from, stride) \
    TILE("tileloadd (%1,%2,1), %%tmm%c0", ::"i"(t), "r"(from), "r"((size_t)(stride)))
#define tile_store(t, to, stride) \
    TILE("tilestored %%tmm%c0, (%1,%2,1)", ::"i"(t), "r"(to), "r"((size_t)(stride)))
#define tile_dot(sum, a, b) \
    TILE("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0", ::"i"(sum), "i"(a), "i"(b))

#include <cpuid.h>
#include <sys/syscall.h>

long syscall(long number, ...); /* unistd.h hides it from the C standard */

/* Ask the system for the tiles' registers. */
static const char *registers(void) {
#ifdef SYS_arch_prctl
    const int ask = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    if (syscall(SYS_arch_prctl, ask, tile_data) == 0) return NULL;
#endif
    return "AMX registers, which the system does not grant";
}

static const char *look(void) {
    unsigned a, b, c, d;
    const char *lack = qd_avx512.lacks();
    if (lack) return lack;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1)) return "AMX-TILE";
    if (!(d >> 23 & 1)) return "AVX512-FP16";
    return d >> 22 & 1 ? registers() : "AMX-BF16";
}

/* Every call asks, and a virtual machine takes 10 us to answer. */
static const char *lacks(void) {
    static const char unknown[] = "", *lack = unknown;
    if (lack == unknown) lack = look();
    return lack;
}
#else
static const char *lacks(void) { return NULL; }
#endif

#endif
