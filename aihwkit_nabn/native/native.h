#include <stdatomic.h>
#include <stdint.h>

/* For what gains by wider vectors: one version each, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define ON_EVERY_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ON_EVERY_PROCESSOR
#endif
