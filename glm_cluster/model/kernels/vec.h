// Sixteen lanes: bf16 and fp32 in memory, fp32 in registers, and exp.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace glm {

using bf16 = uint16_t;

inline __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

// Rounds to nearest, ties to even, as torch does.
inline __m256i narrow(__m512 x) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)); }

inline __mmask16 lanes(int64_t count) { return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1); }

inline __m512 load(const bf16* at, __mmask16 mask) { return widen(_mm256_maskz_loadu_epi16(mask, at)); }
inline __m512 load(const float* at, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, at); }
inline void store(bf16* at, __m512 x, __mmask16 mask) { _mm256_mask_storeu_epi16(at, mask, narrow(x)); }
inline void store(float* at, __m512 x, __mmask16 mask) { _mm512_mask_storeu_ps(at, mask, x); }

// What is left of x once it has been stored as a T.
template <typename T>
inline __m512 rounded(__m512 x) {
  if constexpr (sizeof(T) == 2) return widen(narrow(x));
  return x;
}

// exp(x) for x <= 0, within 2 ulp; what underflows is 0. Cody-Waite reduction and a polynomial of degree 6.
inline __m512 exp(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-150.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

// One 32-bit word of a row against a word of sixteen columns, added to fp32 (bf16: two products; fp32: one) or to
// int32 (four products of unsigned and signed bytes).
struct Bf16Words {
  using Sum = __m512;
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum add(Sum sum, __m512i row, __m512i columns) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(row), reinterpret_cast<__m512bh>(columns));
  }
};

struct FloatWords {
  using Sum = __m512;
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum add(Sum sum, __m512i row, __m512i columns) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(row), _mm512_castsi512_ps(columns), sum);
  }
};

struct ByteWords {
  using Sum = __m512i;
  static Sum zero() { return _mm512_setzero_si512(); }
  static Sum add(Sum sum, __m512i row, __m512i columns) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(row), "v"(columns));  // gcc 12 spills every sum around the intrinsic
    return sum;
  }
};

template <typename T>
struct WordsOf;
template <>
struct WordsOf<bf16> : Bf16Words {};
template <>
struct WordsOf<float> : FloatWords {};

}  // namespace glm
