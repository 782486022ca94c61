/* Elementwise passes of the state-space mixer between its matrix products (see ssd/blockwise.py,
 * which does the products with torch and holds the algorithm; ssd/passes.py has every function of
 * this file in torch and is what they are tested against).
 *
 * Built by build.py, once for every instruction set worth having; loaded with ctypes. Plain C11 with
 * OpenMP pragmas, which a compiler without OpenMP may ignore. Every function comes for fp32 and for
 * bf16 operands (kernels_typed.h); arithmetic is fp32, sums of decays fp64.
 *
 * Work is shared out by chunks or state rows, and sums over tokens are kept a chunk apart, so that
 * results do not depend on the number of threads.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

/* Keep in step with _Shape in __init__.py. */
typedef struct {
    int64_t rows;    /* tokens of the block */
    int64_t chunks;  /* K */
    int64_t q;       /* tokens of a chunk */
    int64_t heads;   /* H */
    int64_t headdim; /* P */
    int64_t state;   /* N */
    int64_t taps;    /* of the convolution */
    int64_t threads;
    /* Of each chunk: its first row and the one past its last (what fills it up counts as zeros), and those
     * of its sequence. */
    const int64_t *start, *stop, *base, *end;
} Shape;

/* Whether a chunk is the first of a sequence that begins within the block. */
static inline int begins(const Shape *s, int64_t k) { return k > 0 && s->start[k] == s->base[k]; }

typedef uint16_t bf16;

/* Longest filter of the convolution; __init__.py refuses longer ones. */
enum { MAX_TAPS = 8 };

/* e^x, relative error below 2e-7; arguments are clamped to where fp32 has normal numbers, NaN stays
 * NaN. Written out because compilers vectorise it, unlike calls of expf. Polynomial: Cephes expf.
 * Adding 1.5 * 2^23 rounds to the nearest integer n and leaves n in the lowest bits. */
#define EXP_BODY(FLOAT, BITS_OF, FLOAT_OF)                   \
    FLOAT shifted = x * 1.44269504088896341f + 12582912.0f; \
    FLOAT n = shifted - 12582912.0f;                         \
    FLOAT r = x - n * 0.693359375f;                          \
    r = r + n * 2.12194440e-4f;                              \
    FLOAT p = r * 1.9875691500e-4f + 1.3981999507e-3f;       \
    p = p * r + 8.3334519073e-3f;                            \
    p = p * r + 4.1665795894e-2f;                            \
    p = p * r + 1.6666665459e-1f;                            \
    p = p * r + 5.0000001201e-1f;                            \
    p = p * r * r + r + 1.0f;                                \
    return p * FLOAT_OF((BITS_OF(shifted) + 127) << 23)

/* 1 / d for d in [1, 1e36] to rounding: a linear guess in the exponent (12 % off), a cubic and two
 * Newton steps. Divisions would be half of the time of some passes. */
#define RECIPROCAL_BODY(FLOAT, BITS_OF, FLOAT_OF) \
    FLOAT r = FLOAT_OF(0x7ef311c7 - BITS_OF(d));  \
    FLOAT e = 1.0f - d * r;                       \
    r = r + r * (e + e * e);                      \
    r = r + r * (1.0f - d * r);                   \
    return r + r * (1.0f - d * r)

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float exp_clamped(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    EXP_BODY(float, bits_of, float_of);
}

static inline float reciprocal(float d) { RECIPROCAL_BODY(float, bits_of, float_of); }

static inline float sigmoid(float x) {
    x = x < -80.0f ? -80.0f : x; /* keeps 1 + e^-x in the range of `reciprocal` */
    return reciprocal(1.0f + exp_clamped(-x));
}

/* log(1 + e^x), relative error below 3e-7: max(x, 0) + log1p(u) for u = e^-|x|, and log1p(u) = 2 artanh(u / (2 + u)), whose
 * argument is at most 1/3. */
static inline float softplus(float x) {
    float size = x < 0.0f ? -x : x;
    float u = exp_clamped(-size);
    float s = u * reciprocal(2.0f + u), q = s * s;
    float p = q * (1.0f / 17.0f) + 1.0f / 15.0f;
    p = p * q + 1.0f / 13.0f;
    p = p * q + 1.0f / 11.0f;
    p = p * q + 1.0f / 9.0f;
    p = p * q + 1.0f / 7.0f;
    p = p * q + 1.0f / 5.0f;
    p = p * q + 1.0f / 3.0f;
    p = p * q + 1.0f;
    return (x < 0.0f ? 0.0f : x) + 2.0f * s * p;
}

/* The same for a vector register (GCC's and clang's vector extension), for passes along the tokens that
 * carry several values of each channel. */
#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float vec __attribute__((vector_size(LANES * sizeof(float))));
typedef uint32_t bitvec __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef bf16 halfvec __attribute__((vector_size(LANES * sizeof(bf16))));

/* x, but no more than `bound`, or no less; NaN stays NaN: of these instructions the second operand. */
#if defined(__AVX512F__)
static inline vec at_most(vec x, float bound) { return (vec)_mm512_min_ps(_mm512_set1_ps(bound), (__m512)x); }
static inline vec at_least(vec x, float bound) { return (vec)_mm512_max_ps(_mm512_set1_ps(bound), (__m512)x); }
#elif defined(__AVX2__)
static inline vec at_most(vec x, float bound) { return (vec)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)x); }
static inline vec at_least(vec x, float bound) { return (vec)_mm256_max_ps(_mm256_set1_ps(bound), (__m256)x); }
#else
static inline vec chosen(bitvec which, vec one, vec other) {
    return (vec)(((bitvec)one & which) | ((bitvec)other & ~which));
}
static inline vec at_most(vec x, float bound) {
    const vec top = (vec){0} + bound;
    return chosen((bitvec)(x > top), top, x);
}
static inline vec at_least(vec x, float bound) {
    const vec bottom = (vec){0} + bound;
    return chosen((bitvec)(x < bottom), bottom, x);
}
#endif

static inline vec exp_vec(vec x) { EXP_BODY(vec, (bitvec), (vec)); }
/* Dividing 8 numbers takes less time than the steps of RECIPROCAL_BODY, dividing 16 takes more. */
#if defined(__AVX512F__)
static inline vec reciprocal_vec(vec d) { RECIPROCAL_BODY(vec, (bitvec), (vec)); }
#else
static inline vec reciprocal_vec(vec d) { return 1.0f / d; }
#endif
static inline vec sigmoid_vec(vec x) {
    return reciprocal_vec(1.0f + exp_vec(at_most(at_least(-x, -80.0f), 80.0f)));
}

static inline float sum_of(vec x) {
    float sum = 0.0f;
    for (int l = 0; l < LANES; l++) sum += x[l];
    return sum;
}

/* Numbers below the smallest normal one count as zero while a thread computes a block: where the loss depends on the
 * last tokens alone, gradients die out towards the first ones, and computing with denormal numbers takes many times as
 * long. Returns what the thread did before, for `restore`. Processors that are not named here compute with them. */
#if defined(__SSE__)
enum { FLUSH = 0x8040 }; /* flush to zero, denormals are zeros */
static inline uint64_t flush_denormals(void) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | FLUSH);
    return before;
}
static inline void restore(uint64_t before) { _mm_setcsr((unsigned)before); }
#elif defined(__aarch64__)
enum { FLUSH = 1 << 24 };
static inline uint64_t flush_denormals(void) {
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | FLUSH) : "memory");
    return before;
}
static inline void restore(uint64_t before) { __asm__ volatile("msr fpcr, %0" : : "r"(before) : "memory"); }
#else
static inline uint64_t flush_denormals(void) { return 0; }
static inline void restore(uint64_t before) { (void)before; }
#endif

static inline float load_f32(float value) { return value; }
static inline float store_f32(float value) { return value; }

/* Derivative of SiLU. */
static inline float silu_slope(float x) {
    float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

static inline vec silu_slope_vec(vec x) {
    vec s = sigmoid_vec(x);
    return s * (1.0f + x * (1.0f - s));
}

static inline vec load_vec_f32(const float *from) {
    vec out;
    memcpy(&out, from, sizeof out);
    return out;
}

static inline void store_vec_f32(float *to, vec value) { memcpy(to, &value, sizeof value); }

static inline float load_bf16(bf16 value) { return float_of((uint32_t)value << 16); }

static inline bf16 store_bf16(float value) { /* to nearest, ties to even; NaN stays NaN */
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bf16)((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

static inline vec load_vec_bf16(const bf16 *from) {
    halfvec half;
    memcpy(&half, from, sizeof half);
    return (vec)(__builtin_convertvector(half, bitvec) << 16);
}

static inline void store_vec_bf16(bf16 *to, vec value) {
    bitvec bits = (bitvec)value;
    bitvec nan = (bitvec)((bits & 0x7fffffffu) > 0x7f800000u);
    bitvec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    halfvec half = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), halfvec);
    memcpy(to, &half, sizeof half);
}

#define OP float
#define NAME(f) f##_f32
#define LOAD(v) load_f32(v)
#define STORE(v) store_f32(v)
#define LOAD_VEC(p) load_vec_f32(p)
#define STORE_VEC(p, v) store_vec_f32(p, v)
#include "kernels_typed.h"
#undef OP
#undef NAME
#undef LOAD
#undef STORE
#undef LOAD_VEC
#undef STORE_VEC

#include "products.h"
#include "block.h"

#define OP bf16
#define NAME(f) f##_bf16
#define LOAD(v) load_bf16(v)
#define STORE(v) store_bf16(v)
#define LOAD_VEC(p) load_vec_bf16(p)
#define STORE_VEC(p, v) store_vec_bf16(p, v)
#include "kernels_typed.h"
