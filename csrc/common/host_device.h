// One spelling for functions that a C++ loop and a CUDA kernel both call.
#pragma once

#if defined(__CUDACC__)
#define SF_INLINE __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define SF_INLINE __forceinline
#else
#define SF_INLINE inline __attribute__((always_inline))
#endif

// SF_LAMBDA_INLINE, after a lambda's parameters, does for it what SF_INLINE does for a function.
#if defined(__GNUC__) && !defined(__CUDACC__)
#define SF_LAMBDA_INLINE __attribute__((always_inline))
#else
#define SF_LAMBDA_INLINE
#endif

// SF_VECTOR_CLONES compiles a function for several instruction sets and picks one when the library loads.
#if defined(SF_HAS_TARGET_CLONES)
#define SF_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SF_VECTOR_CLONES
#endif
