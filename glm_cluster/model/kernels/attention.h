// Attention over paged keys and values. A query row's bits depend on its own query and its own keys and values alone.
#pragma once
#include "abi.h"

namespace glm {

// Keys and values of one token, [kv_heads, head_dim] each, into their slot.
template <typename T>
void store_kv(const Shape& shape, const Cache& cache, int64_t slot, const T* k, const T* v);

// out [tokens, heads, head_dim] for queries q, rows of `stride` elements, over everything at and before their positions.
template <typename T>
void attend(const Shape& shape, const Cache& cache, const Step& step, const T* q, int64_t stride, T* out);

}  // namespace glm
