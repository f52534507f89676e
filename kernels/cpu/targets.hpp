// Which of Highway's x86 targets the kernels are compiled for. Included before any Highway header, with the same value
// in every file, because the targets' numbers index the tables of compiled functions.
#pragma once

// Left out to bound the time to compile: AVX3_SPR, AVX3_DL, SSSE3 and SSE2 (bits 4, 7, 12 and 14), each a whole
// compilation next to AVX3, SSE4 and the baseline. Bits, not names, since Highway 1.0.3 lacks some of the names.
#define HWY_DISABLED_TARGETS ((1LL << 4) | (1LL << 7) | (1LL << 12) | (1LL << 14))
