#pragma once

// A function with one definition for the host and the device. Always inlined, so that no copy
// compiled for AVX-512 can stand in, at link time, for one that an older processor runs.
#ifdef __CUDACC__
#define DPCOMM_HD __host__ __device__ __forceinline__
#else
#define DPCOMM_HD inline __attribute__((always_inline))
#endif
