// Numbers as ranks exchange them: how each is stored, widened to fp32, and narrowed from it to the nearest, ties to even.
//
// Plain integer arithmetic, the same bits on every CPU; compilers vectorise it.
#pragma once

#include <cstdint>
#include <cstring>

namespace glm::floats {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct Float32 {
  using Stored = float;
  static float widen(float x) { return x; }
  static float narrow(float x) { return x; }
};

struct Bfloat16 {
  using Stored = uint16_t;
  static float widen(uint16_t x) { return from_bits(static_cast<uint32_t>(x) << 16); }
  static uint16_t narrow(float x) {
    const uint32_t bits = to_bits(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
};

struct Float16 {
  using Stored = uint16_t;
  static float widen(uint16_t x) {
    const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(x & 0x7fffu) << 13;
    const uint32_t finite = to_bits(from_bits(magnitude) * 0x1p112f);  // exact, subnormals too
    return from_bits(sign | (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite));
  }
  static uint16_t narrow(float x) {
    const uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t small = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;  // the sum rounds to 2^-24
    const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    return static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? large : magnitude < 0x38800000u ? small : normal));
  }
};

}  // namespace glm::floats
