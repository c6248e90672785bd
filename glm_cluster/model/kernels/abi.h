// What Python hands over; `native.py` mirrors every field. Nothing here is owned.
#pragma once
#include <cstdint>

namespace glm {

enum Dtype : int32_t { kBf16 = 0, kFloat = 1, kInt8 = 2 };

// W [rows, columns], packed: panels of 64 rows; in a panel, word k of all 64 rows side by side. A word is 32 bits of a
// row: two bf16, one fp32 or four int8. Rows past the end of the last panel are zeros.
struct Weight {
  const int32_t* words;
  const float* scales;     // int8: of each row
  const int32_t* offsets;  // int8: 128 times the sum of each row, because activations come as unsigned bytes
  const void* bias;        // [rows] in the activations' dtype, or null
  int64_t rows, columns;
  int32_t dtype;
};

struct Shape {
  int64_t hidden, heads, kv_heads, head_dim, rotary_dim, intermediate;
  int64_t num_blocks, block_tokens;
  float norm_eps;
  int32_t dtype;  // of activations, norms and cache
};

// Keys and values of one layer, [kv_heads, num_blocks] blocks each. A block of values is [block_tokens, head_dim]; a block
// of keys has word w of all its slots side by side: [head_dim words, block_tokens].
struct Cache {
  void* keys;
  void* values;
};

struct Layer {
  Weight qkv, o, gate_up, down;
  const void *input_norm, *post_attention_norm;
  const void *post_self_attn_norm, *post_mlp_norm;  // glm4's, or null
  Cache cache;
};

// The rows of one step, sequence by sequence.
struct Step {
  int64_t tokens, sequences;
  const int64_t* slots;  // [tokens] flat slot of each
  const void *cos, *sin; // [tokens, rotary_dim] in the activations' dtype
  const int64_t *first_row, *num_tokens, *start, *first_block;  // [sequences]; first_block is an index into blocks
  const int64_t* blocks;
};

}  // namespace glm
