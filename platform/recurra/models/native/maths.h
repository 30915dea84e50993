// Functions on scalars that compilers can vectorise, and the reductions on rows that need them.
//
// No -ffast-math anywhere: with it, the reciprocal of an infinite exponential became NaN after thousands of updates.
// float has polynomials of its own (error below 2.5 ulp); double, which is for tests, uses the standard library.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace recurra {

using Index = std::int64_t;

inline float from_bits(std::int32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline std::int32_t to_bits(float value) {
    std::int32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline double exponential(double x) { return std::exp(x); }

// e^x as power * (1 + rest), for x in [-87, 88]; `rest` keeps its digits near 0, where e^x - 1 would lose them.
struct Exponential {
    float power, rest;
};

inline Exponential exponential_parts(float x) {
    const float shifter = 12582912.0f;  // 1.5 * 2^23: adding and taking it away rounds to an integer
    const float n = (x * 1.44269504f + shifter) - shifter;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return {from_bits((static_cast<std::int32_t>(n) + 127) << 23), p * r * r + r};
}

// Clamped to [-87, 88], so that neither it nor its reciprocal is ever infinite.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const Exponential e = exponential_parts(x);
    return (e.rest + 1.0f) * e.power;
}

inline double logarithm(double x) { return std::log(x); }

// For positive normal numbers.
inline float logarithm(float x) {
    const std::int32_t bits = to_bits(x);
    float e = static_cast<float>((bits >> 23) - 126);
    float m = from_bits((bits & 0x007fffff) | 0x3f000000);  // in [0.5, 1)
    const bool low = m < 0.707106781f;
    e = low ? e - 1.0f : e;
    m = low ? m + m - 1.0f : m - 1.0f;
    const float z = m * m;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const float small = p * m * z - e * 2.12194440e-4f - 0.5f * z;
    return m + small + e * 0.693359375f;
}

template <class T>
inline T sigmoid(T x) {
    return T(1) / (T(1) + exponential(-x));
}

inline double hyperbolic_tangent(double x) { return std::tanh(x); }

// m / (m + 2) with m = e^2x - 1; from 10 on it is 1.
inline float hyperbolic_tangent(float x) {
    x = x < -10.0f ? -10.0f : x;
    x = x > 10.0f ? 10.0f : x;
    const Exponential e = exponential_parts(2.0f * x);
    const float m = e.rest * e.power + (e.power - 1.0f);
    return m / (m + 2.0f);
}

template <class T>
inline T softplus(T x) {
    return x > T(20) ? x : std::log1p(std::exp(x));
}

// While it lives, results below the smallest normal number are 0: sharpened weightings are full of them, and each costs
// a hundred cycles. (Nothing to do on CPUs without such a switch here.)
class FlushTinyNumbers {
#if defined(__SSE__)
    unsigned before = __builtin_ia32_stmxcsr();

   public:
    FlushTinyNumbers() { __builtin_ia32_ldmxcsr(before | 0x8040); }
    ~FlushTinyNumbers() { __builtin_ia32_ldmxcsr(before); }
#else
   public:
    FlushTinyNumbers() {}
#endif
};

template <class T>
inline T sum(const T* a, Index n) {
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (Index i = 0; i < n; ++i) total += a[i];
    return total;
}

template <class T>
inline T dot(const T* a, const T* b, Index n) {
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (Index i = 0; i < n; ++i) total += a[i] * b[i];
    return total;
}

// In place.
template <class T>
inline void softmax(T* a, Index n) {
    T highest = a[0];
#pragma omp simd reduction(max : highest)
    for (Index i = 0; i < n; ++i) highest = a[i] > highest ? a[i] : highest;
#pragma omp simd
    for (Index i = 0; i < n; ++i) a[i] = exponential(a[i] - highest);
    const T scale = T(1) / sum(a, n);
#pragma omp simd
    for (Index i = 0; i < n; ++i) a[i] *= scale;
}

// The gradient of what a softmax was taken of, from the softmax and its gradient; `out` may be `grad`.
template <class T>
inline void softmax_backward(const T* soft, const T* grad, T* out, Index n) {
    const T mean = dot(soft, grad, n);
#pragma omp simd
    for (Index i = 0; i < n; ++i) out[i] = soft[i] * (grad[i] - mean);
}

}  // namespace recurra
