// needs: avx512f avx512bw avx512vl avx512_bf16 avx512_vnni
// Decoder layers: all of a lone rank in one call, else each in calls that end where ranks add up their parts. The order of operations and of roundings is
// HF's (`GlmDecoderLayer`, `GlmRMSNorm`, `apply_rotary_pos_emb`, `GlmMLP`); sums are in fp32 in an order of our own.
#include <algorithm>
#include <cmath>
#include <vector>

#include "abi.h"
#include "attention.h"
#include "linear.h"
#include "team.h"
#include "vec.h"

namespace glm {
namespace {

constexpr int64_t kRowsPerTask = 4;

// Memory that a step's calls use in turn. Calls come from one thread; another would get its own.
template <typename T>
T* scratch(int which, int64_t size) {
  static thread_local std::vector<T> buffers[4];
  if (static_cast<int64_t>(buffers[which].size()) < size) buffers[which].resize(size);
  return buffers[which].data();
}

template <typename Body>
void each_row(int64_t rows, const Body& body) {
  parallel(static_cast<int>((rows + kRowsPerTask - 1) / kRowsPerTask), [&](int part) {
    for (int64_t r = part * kRowsPerTask; r < std::min(rows, (part + 1) * kRowsPerTask); ++r) body(r);
  });
}

template <typename T>
void norm(const T* x, const void* weight, T* y, int64_t width, float eps) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t at = 0; at < width; at += 16) {
    const __m512 value = load(x + at, lanes(width - at));
    squares = _mm512_fmadd_ps(value, value, squares);
  }
  const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / static_cast<float>(width) + eps));
  for (int64_t at = 0; at < width; at += 16) {
    const __mmask16 mask = lanes(width - at);
    const __m512 normed = rounded<T>(_mm512_mul_ps(load(x + at, mask), scale));
    store(y + at, _mm512_mul_ps(load(static_cast<const T*>(weight) + at, mask), normed), mask);
  }
}

// sum = x + part, the part normalised first where there is a weight for it. `part` is overwritten then.
template <typename T>
void add(const T* x, T* part, const void* weight, T* sum, const Shape& shape) {
  if (weight != nullptr) norm(part, weight, part, shape.hidden, shape.norm_eps);
  for (int64_t at = 0; at < shape.hidden; at += 16) {
    const __mmask16 mask = lanes(shape.hidden - at);
    store(sum + at, _mm512_add_ps(load(x + at, mask), load(part + at, mask)), mask);
  }
}

// Rotates interleaved pairs of the first `width` elements in place: (a, b) -> (a cos - b sin, b cos + a sin).
template <typename T>
void rotate(T* x, const T* cos, const T* sin, int64_t width) {
  const __m512i sign = _mm512_set1_epi64(0x80000000ull);  // of the even lanes
  for (int64_t at = 0; at < width; at += 16) {
    const __mmask16 mask = lanes(width - at);
    const __m512 value = load(x + at, mask);
    const __m512 swapped = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(_mm512_permute_ps(value, 0xb1)), sign));
    const __m512 straight = rounded<T>(_mm512_mul_ps(value, load(cos + at, mask)));
    const __m512 turned = rounded<T>(_mm512_mul_ps(swapped, load(sin + at, mask)));
    store(x + at, _mm512_add_ps(straight, turned), mask);
  }
}

// up * silu(gate), each product rounded.
template <typename T>
void gate(const T* gates, const T* ups, T* y, int64_t width) {
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int64_t at = 0; at < width; at += 16) {
    const __mmask16 mask = lanes(width - at);
    const __m512 x = load(gates + at, mask);
    // exp is for what is not above 0: x / (1 + exp(-x)) = x exp(-|x|) / (1 + exp(-|x|)) for x below 0.
    const __m512 small = exp(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
    const __mmask16 below = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 top = _mm512_mask_mul_ps(x, below, x, small);
    const __m512 act = rounded<T>(_mm512_div_ps(top, _mm512_add_ps(one, small)));
    store(y + at, _mm512_mul_ps(load(ups + at, mask), act), mask);
  }
}

template <typename T>
void attention_half(const Shape& shape, const Layer& layer, const Step& step, const T* x, T* out) {
  const int64_t q_width = shape.heads * shape.head_dim, kv_width = shape.kv_heads * shape.head_dim;
  const int64_t stride = q_width + 2 * kv_width;
  T* normed = scratch<T>(0, step.tokens * shape.hidden);
  T* qkv = scratch<T>(1, step.tokens * stride);
  T* mixed = scratch<T>(2, step.tokens * q_width);
  each_row(step.tokens, [&](int64_t t) {
    norm(x + t * shape.hidden, layer.input_norm, normed + t * shape.hidden, shape.hidden, shape.norm_eps);
  });
  linear(layer.qkv, normed, qkv, step.tokens);
  each_row(step.tokens, [&](int64_t t) {
    const T* cos = static_cast<const T*>(step.cos) + t * shape.rotary_dim;
    const T* sin = static_cast<const T*>(step.sin) + t * shape.rotary_dim;
    T* row = qkv + t * stride;
    for (int64_t head = 0; head < shape.heads + shape.kv_heads; ++head)
      rotate(row + head * shape.head_dim, cos, sin, shape.rotary_dim);
    store_kv(shape, layer.cache, step.slots[t], row + q_width, row + q_width + kv_width);
  });
  attend(shape, layer.cache, step, qkv, stride, mixed);
  linear(layer.o, mixed, out, step.tokens);
}

template <typename T>
void mlp_half(const Shape& shape, const Layer& layer, const Step& step, const T* x, T* mixed, T* sum, T* out) {
  const int64_t width = shape.intermediate;
  T* normed = scratch<T>(0, step.tokens * shape.hidden);
  T* gates_ups = scratch<T>(1, step.tokens * 2 * width);
  T* gated = scratch<T>(2, step.tokens * width);
  each_row(step.tokens, [&](int64_t t) {
    const int64_t at = t * shape.hidden;
    add(x + at, mixed + at, layer.post_self_attn_norm, sum + at, shape);
    norm(sum + at, layer.post_attention_norm, normed + at, shape.hidden, shape.norm_eps);
  });
  linear(layer.gate_up, normed, gates_ups, step.tokens);
  each_row(step.tokens, [&](int64_t t) {
    gate(gates_ups + t * 2 * width, gates_ups + t * 2 * width + width, gated + t * width, width);
  });
  linear(layer.down, gated, out, step.tokens);
}

template <typename T>
void layers(const Shape& shape, const Layer* first, int64_t count, const Step& step, T* x) {
  T* mixed = scratch<T>(3, 2 * step.tokens * shape.hidden);
  T* fed = mixed + step.tokens * shape.hidden;
  for (const Layer* layer = first; layer < first + count; ++layer) {
    attention_half(shape, *layer, step, x, mixed);
    mlp_half(shape, *layer, step, x, mixed, x, fed);
    each_row(step.tokens, [&](int64_t t) {
      const int64_t at = t * shape.hidden;
      add(x + at, fed + at, layer->post_mlp_norm, x + at, shape);
    });
  }
}

template <typename T>
void answer(const Shape& shape, const Cache& cache, const Step& step, const T* q, const T* k, const T* v, T* out) {
  const int64_t kv_width = shape.kv_heads * shape.head_dim;
  for (int64_t t = 0; t < step.tokens; ++t) store_kv(shape, cache, step.slots[t], k + t * kv_width, v + t * kv_width);
  attend(shape, cache, step, q, shape.heads * shape.head_dim, out);
}

}  // namespace
}  // namespace glm

using namespace glm;

// out [tokens, hidden] = this rank's part of o_proj(attention(norm(x))); writes the layer's cache.
extern "C" void glm_attention_half(const Shape* shape, const Layer* layer, const Step* step, const void* x, void* out) {
  if (shape->dtype == kFloat) attention_half(*shape, *layer, *step, static_cast<const float*>(x), static_cast<float*>(out));
  else attention_half(*shape, *layer, *step, static_cast<const bf16*>(x), static_cast<bf16*>(out));
}

// All layers of a rank that is alone, in place of x [tokens, hidden]: threads that never leave need no waking.
extern "C" void glm_layers(const Shape* shape, const Layer* first, int64_t count, const Step* step, void* x) {
  if (shape->dtype == kFloat) layers(*shape, first, count, *step, static_cast<float*>(x));
  else layers(*shape, first, count, *step, static_cast<bf16*>(x));
}

// sum = x + mixed; out = this rank's part of mlp(norm(sum)). All [tokens, hidden]; `mixed` may be overwritten.
extern "C" void glm_mlp_half(const Shape* shape, const Layer* layer, const Step* step, const void* x, void* mixed, void* sum,
                             void* out) {
  if (shape->dtype == kFloat)
    mlp_half(*shape, *layer, *step, static_cast<const float*>(x), static_cast<float*>(mixed), static_cast<float*>(sum),
             static_cast<float*>(out));
  else
    mlp_half(*shape, *layer, *step, static_cast<const bf16*>(x), static_cast<bf16*>(mixed), static_cast<bf16*>(sum),
             static_cast<bf16*>(out));
}

// sum = x + fed, in place of x; `fed` may be overwritten.
extern "C" void glm_add(const Shape* shape, const Layer* layer, int64_t rows, void* x, void* fed) {
  each_row(rows, [&](int64_t r) {
    const int64_t at = r * shape->hidden;
    if (shape->dtype == kFloat)
      add(static_cast<float*>(x) + at, static_cast<float*>(fed) + at, layer->post_mlp_norm, static_cast<float*>(x) + at, *shape);
    else
      add(static_cast<bf16*>(x) + at, static_cast<bf16*>(fed) + at, layer->post_mlp_norm, static_cast<bf16*>(x) + at, *shape);
  });
}

// Stores k and v [tokens, kv_heads, head_dim] and answers q [tokens, heads, head_dim]: the attention alone.
extern "C" void glm_attend(const Shape* shape, const Cache* cache, const Step* step, const void* q, const void* k, const void* v,
                           void* out) {
  if (shape->dtype == kFloat)
    answer(*shape, *cache, *step, static_cast<const float*>(q), static_cast<const float*>(k), static_cast<const float*>(v),
           static_cast<float*>(out));
  else
    answer(*shape, *cache, *step, static_cast<const bf16*>(q), static_cast<const bf16*>(k), static_cast<const bf16*>(v),
           static_cast<bf16*>(out));
}

// y [rows, width] = x normalised, times weight.
extern "C" void glm_norm(const void* x, const void* weight, void* y, int64_t rows, int64_t width, float eps, int32_t dtype) {
  each_row(rows, [&](int64_t r) {
    if (dtype == kFloat) norm(static_cast<const float*>(x) + r * width, weight, static_cast<float*>(y) + r * width, width, eps);
    else norm(static_cast<const bf16*>(x) + r * width, weight, static_cast<bf16*>(y) + r * width, width, eps);
  });
}
