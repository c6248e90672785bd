// needs: avx512f avx512bw avx512vl avx512_bf16 avx512_vnni
// Flash attention (Dao et al., arXiv:2205.14135; split over keys: Flash-Decoding) in an order that positions alone decide:
// tiles of 64 slots in turn within a chunk of 1024, chunks joined in turn. Each tile of keys and values is read once for all
// the query heads that share it, and for up to 56 query rows.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "team.h"
#include "vec.h"

namespace glm {
namespace {

constexpr int kTile = 64, kChunk = 1024;
constexpr int kRows = 7;         // query rows whose sums are in registers at once
constexpr int kBlockRows = 56;   // query rows that pass over a tile while it is in the cache
constexpr int kFewBlocks = 16;   // fewer blocks of rows than this are split by chunks, so that every thread has work
constexpr int64_t kSplitFloats = 1 << 24;  // what split blocks may keep of their chunks
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Query rows of one sequence that share a KV head: row r is query token r / group, head r % group of the group.
struct RowBlock {
  int64_t sequence, kv_head;
  int first, count;
  int last_position;

  int chunks() const { return last_position / kChunk + 1; }
};

// What rows have seen so far: the largest score, the sum of weights, the weighted sum of values [count, width].
struct Seen {
  float peak[kBlockRows], total[kBlockRows];
  float* mixed;
};

// 64 slots of one KV head as the loops want them: sixteen slots of a key word side by side, and a pointer to each value.
template <typename T>
struct Tile {
  const int32_t* keys[kTile / 16];
  int64_t key_stride;  // in words, from one key word to the next
  const T* values[kTile];
};

template <typename T>
constexpr int per_word = 4 / sizeof(T);

template <typename T>
class BlockTask {
 public:
  BlockTask(const Shape& shape, const Cache& cache, const Step& step, const T* q, int64_t stride, const RowBlock& block)
      : shape_(shape), cache_(cache), block_(block), group_(static_cast<int>(shape.heads / shape.kv_heads)),
        width_((shape.head_dim + 31) / 32 * 32), words_(shape.head_dim / per_word<T>),
        scale_(static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.head_dim)))) {
    table_ = step.blocks + step.first_block[block.sequence];
    const int64_t first_row = step.first_row[block.sequence], start = step.start[block.sequence];
    for (int r = 0; r < block.count; ++r) {
      const int token = (block.first + r) / group_, head = (block.first + r) % group_;
      row_[r] = first_row + token;
      head_[r] = block.kv_head * group_ + head;
      position_[r] = static_cast<int>(start + token);
      query_[r] = reinterpret_cast<const int32_t*>(q + row_[r] * stride + head_[r] * shape.head_dim);
    }
  }

  // Looks at one chunk alone.
  void look(int chunk, Seen& seen) const {
    std::fill_n(seen.peak, block_.count, kNothing);
    std::fill_n(seen.total, block_.count, 0.0f);
    std::fill_n(seen.mixed, block_.count * width_, 0.0f);
    const int stop = std::min((chunk + 1) * kChunk, block_.last_position + 1);
    for (int first = chunk * kChunk; first < stop; first += kTile) {
      const int slots = std::min(kTile, stop - first);
      const Tile<T> tile = tile_at(first, slots);
      const int parts = (block_.count + kRows - 1) / kRows;
      for (int part = 0, row = 0; part < parts; ++part) {
        const int count = block_.count / parts + (part < block_.count % parts);
        if (position_[row + count - 1] >= first) pass(count, row, first, slots, tile, seen);
        row += count;
      }
    }
  }

  // Adds a later chunk.
  void join(Seen& seen, const Seen& later) const {
    for (int r = 0; r < block_.count; ++r) {
      if (later.total[r] == 0.0f) continue;  // past the row's position
      const float peak = std::max(seen.peak[r], later.peak[r]);
      const float old_share = exp_of(seen.peak[r] - peak), new_share = exp_of(later.peak[r] - peak);
      seen.peak[r] = peak;
      seen.total[r] = seen.total[r] * old_share + later.total[r] * new_share;
      float* mixed = seen.mixed + r * width_;
      const float* more = later.mixed + r * width_;
      for (int64_t d = 0; d < width_; d += 16) {
        const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(mixed + d), _mm512_set1_ps(old_share));
        _mm512_storeu_ps(mixed + d, _mm512_fmadd_ps(_mm512_loadu_ps(more + d), _mm512_set1_ps(new_share), kept));
      }
    }
  }

  void answer(const Seen& seen, T* out) const {
    for (int r = 0; r < block_.count; ++r) {
      T* to = out + (row_[r] * shape_.heads + head_[r]) * shape_.head_dim;
      const __m512 total = _mm512_set1_ps(seen.total[r]);
      for (int64_t d = 0; d < shape_.head_dim; d += 32) {
        __m512 low = _mm512_loadu_ps(seen.mixed + r * width_ + d), high = _mm512_loadu_ps(seen.mixed + r * width_ + d + 16);
        in_order(low, high);
        store(to + d, _mm512_div_ps(low, total), lanes(shape_.head_dim - d));
        if (shape_.head_dim - d > 16) store(to + d + 16, _mm512_div_ps(high, total), lanes(shape_.head_dim - d - 16));
      }
    }
  }

  int64_t width() const { return width_; }

 private:
  static float exp_of(float x) { return _mm512_cvtss_f32(exp(_mm512_set1_ps(x))); }

  // Sums of bf16 values were made from interleaved pairs, which leaves them in the order of the unpack instructions.
  static void in_order(__m512& low, __m512& high) {
    if constexpr (sizeof(T) == 2) {
      const __m512i to_low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
      const __m512i to_high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
      const __m512 first = _mm512_permutex2var_ps(low, to_low, high);
      high = _mm512_permutex2var_ps(low, to_high, high);
      low = first;
    }
  }

  Tile<T> tile_at(int first, int slots) const {
    Tile<T> tile;
    const int64_t block_tokens = shape_.block_tokens, block_size = block_tokens * shape_.head_dim;
    const T* keys = static_cast<const T*>(cache_.keys) + block_.kv_head * shape_.num_blocks * block_size;
    const T* values = static_cast<const T*>(cache_.values) + block_.kv_head * shape_.num_blocks * block_size;
    static thread_local std::vector<T> nothing;
    nothing.resize(std::max<size_t>(nothing.size(), width_), 0);
    for (int s = 0; s < kTile; ++s) {
      const int64_t slot = first + s, block = s < slots ? table_[slot / block_tokens] : 0;
      tile.values[s] = s < slots ? values + block * block_size + slot % block_tokens * shape_.head_dim : nothing.data();
    }
    if (block_tokens % 16 == 0) {
      tile.key_stride = block_tokens;
      for (int s = 0; s < kTile; s += 16) {
        const int64_t slot = first + s, block = s < slots ? table_[slot / block_tokens] : 0;
        const T* at = keys + block * block_size;
        tile.keys[s / 16] = reinterpret_cast<const int32_t*>(at) + slot % block_tokens;
      }
    } else {
      gather(tile, keys, first, slots);
    }
    return tile;
  }

  // Blocks of fewer than sixteen slots, put side by side.
  void gather(Tile<T>& tile, const T* keys, int first, int slots) const {
    static thread_local std::vector<int32_t> side_by_side;
    side_by_side.resize(words_ * kTile);
    for (int s = 0; s < kTile; ++s) {
      const int64_t slot = first + s, block = s < slots ? table_[slot / shape_.block_tokens] : 0;
      const int32_t* at = reinterpret_cast<const int32_t*>(keys + block * shape_.block_tokens * shape_.head_dim) +
                          slot % shape_.block_tokens;
      for (int64_t w = 0; w < words_; ++w) side_by_side[w * kTile + s] = at[w * shape_.block_tokens];
    }
    tile.key_stride = kTile;
    for (int s = 0; s < kTile; s += 16) tile.keys[s / 16] = side_by_side.data() + s;
  }

  void pass(int count, int row, int first, int slots, const Tile<T>& tile, Seen& seen) const {
    switch (count) {
      case 1: return pass<1>(row, first, slots, tile, seen);
      case 2: return pass<2>(row, first, slots, tile, seen);
      case 3: return pass<3>(row, first, slots, tile, seen);
      case 4: return pass<4>(row, first, slots, tile, seen);
      case 5: return pass<5>(row, first, slots, tile, seen);
      case 6: return pass<6>(row, first, slots, tile, seen);
      default: return pass<7>(row, first, slots, tile, seen);
    }
  }

  // R query rows over one tile.
  template <int R>
  void pass(int row, int first, int slots, const Tile<T>& tile, Seen& seen) const {
    alignas(64) T weights[R][kTile];
    float shrink[R];
    score<R>(row, first, tile, seen, weights, shrink);
    for (int64_t d = 0; d < width_; d += 32) mix<R>(d, row, slots, tile, weights, shrink, seen);
  }

  template <int R>
  void score(int row, int first, const Tile<T>& tile, Seen& seen, T (*weights)[kTile], float* shrink) const {
    using Words = WordsOf<T>;
    __m512 sum[R][4];
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < 4; ++j) sum[r][j] = Words::zero();
    for (int64_t w = 0; w < words_; ++w) {
      __m512i keys[4];
      for (int j = 0; j < 4; ++j) keys[j] = _mm512_loadu_si512(tile.keys[j] + w * tile.key_stride);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512i query = _mm512_set1_epi32(query_[row + r][w]);
        for (int j = 0; j < 4; ++j) sum[r][j] = Words::add(sum[r][j], query, keys[j]);
      }
    }
    for (int r = 0; r < R; ++r) weigh(row + r, first, sum[r], seen, weights[r], shrink[r]);
  }

  // Scores of one row to weights relative to the largest score so far.
  void weigh(int row, int first, __m512* scores, Seen& seen, T* weights, float& shrink) const {
    const int visible = position_[row] + 1 - first;
    __mmask16 seen_lanes[4];
    __m512 peaks = _mm512_set1_ps(kNothing);
    for (int j = 0; j < 4; ++j) {
      seen_lanes[j] = lanes(std::max(0, visible - j * 16));
      scores[j] = _mm512_mul_ps(scores[j], _mm512_set1_ps(scale_));
      peaks = _mm512_mask_max_ps(peaks, seen_lanes[j], peaks, scores[j]);
    }
    const float peak = std::max(seen.peak[row], _mm512_reduce_max_ps(peaks));
    shrink = seen.peak[row] == peak ? 1.0f : exp_of(seen.peak[row] - peak);
    __m512 weight[4];
    for (int j = 0; j < 4; ++j) {
      weight[j] = _mm512_maskz_mov_ps(seen_lanes[j], exp(_mm512_sub_ps(scores[j], _mm512_set1_ps(peak))));
      store(weights + j * 16, weight[j], 0xffff);
    }
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(weight[0], weight[1]), _mm512_add_ps(weight[2], weight[3]));
    seen.total[row] = seen.total[row] * shrink + _mm512_reduce_add_ps(sum);
    seen.peak[row] = peak;
  }

  // Elements d .. d + 31 of the values, weighted, onto what R rows have.
  template <int R>
  void mix(int64_t d, int row, int slots, const Tile<T>& tile, const T (*weights)[kTile], const float* shrink, Seen& seen) const {
    using Words = WordsOf<T>;
    __m512 low[R], high[R];
    for (int r = 0; r < R; ++r) {
      const float* mixed = seen.mixed + (row + r) * width_ + d;
      low[r] = _mm512_mul_ps(_mm512_loadu_ps(mixed), _mm512_set1_ps(shrink[r]));
      high[r] = _mm512_mul_ps(_mm512_loadu_ps(mixed + 16), _mm512_set1_ps(shrink[r]));
    }
    const int64_t left = shape_.head_dim - d;
    for (int s = 0; s < slots; s += per_word<T>) {
      __m512i first, second;
      if constexpr (sizeof(T) == 2) {
        const __mmask32 mask = left >= 32 ? 0xffffffffu : (1u << left) - 1;
        const __m512i even = _mm512_maskz_loadu_epi16(mask, tile.values[s] + d);
        const __m512i odd = _mm512_maskz_loadu_epi16(mask, tile.values[s + 1] + d);
        first = _mm512_unpacklo_epi16(even, odd);
        second = _mm512_unpackhi_epi16(even, odd);
      } else {
        first = _mm512_maskz_loadu_epi32(lanes(left), tile.values[s] + d);
        second = left > 16 ? _mm512_maskz_loadu_epi32(lanes(left - 16), tile.values[s] + d + 16) : _mm512_setzero_si512();
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        int32_t word;
        memcpy(&word, weights[r] + s, 4);
        const __m512i weight = _mm512_set1_epi32(word);
        low[r] = Words::add(low[r], weight, first);
        high[r] = Words::add(high[r], weight, second);
      }
    }
    for (int r = 0; r < R; ++r) {
      float* mixed = seen.mixed + (row + r) * width_ + d;
      _mm512_storeu_ps(mixed, low[r]);
      _mm512_storeu_ps(mixed + 16, high[r]);
    }
  }

  const Shape& shape_;
  const Cache& cache_;
  const RowBlock& block_;
  const int group_;
  const int64_t width_, words_;  // fp32 sums of a row; 32-bit words of a key
  const float scale_;
  const int64_t* table_;
  const int32_t* query_[kBlockRows];
  int64_t row_[kBlockRows], head_[kBlockRows];
  int position_[kBlockRows];
};

std::vector<RowBlock> blocks_of(const Shape& shape, const Step& step) {
  std::vector<RowBlock> blocks;
  const int group = static_cast<int>(shape.heads / shape.kv_heads);
  for (int64_t s = 0; s < step.sequences; ++s) {
    const int rows = static_cast<int>(step.num_tokens[s]) * group;
    for (int64_t head = 0; head < shape.kv_heads; ++head)
      for (int first = 0; first < rows; first += kBlockRows) {
        const int count = std::min(kBlockRows, rows - first);
        blocks.push_back({s, head, first, count, static_cast<int>(step.start[s]) + (first + count - 1) / group});
      }
  }
  return blocks;
}

// One block of rows from its first chunk to its last.
template <typename T>
void whole(const BlockTask<T>& task, const RowBlock& block, T* out) {
  static thread_local std::vector<float> mixed;
  mixed.resize(2 * kBlockRows * task.width());
  Seen seen, later;
  seen.mixed = mixed.data();
  later.mixed = mixed.data() + kBlockRows * task.width();
  task.look(0, seen);
  for (int chunk = 1; chunk < block.chunks(); ++chunk) {
    task.look(chunk, later);
    task.join(seen, later);
  }
  task.answer(seen, out);
}

}  // namespace

template <typename T>
void store_kv(const Shape& shape, const Cache& cache, int64_t slot, const T* k, const T* v) {
  const int64_t block_size = shape.block_tokens * shape.head_dim, words = shape.head_dim / per_word<T>;
  for (int64_t head = 0; head < shape.kv_heads; ++head) {
    const int64_t block = (head * shape.num_blocks + slot / shape.block_tokens) * block_size;
    int32_t* key = reinterpret_cast<int32_t*>(static_cast<T*>(cache.keys) + block) + slot % shape.block_tokens;
    const char* from = reinterpret_cast<const char*>(k + head * shape.head_dim);
    for (int64_t w = 0; w < words; ++w) memcpy(key + w * shape.block_tokens, from + w * 4, 4);
    T* value = static_cast<T*>(cache.values) + block + slot % shape.block_tokens * shape.head_dim;
    memcpy(value, v + head * shape.head_dim, shape.head_dim * sizeof(T));
  }
}

template <typename T>
void attend(const Shape& shape, const Cache& cache, const Step& step, const T* q, int64_t stride, T* out) {
  const std::vector<RowBlock> blocks = blocks_of(shape, step);
  const int count = static_cast<int>(blocks.size());
  const int64_t width = (shape.head_dim + 31) / 32 * 32;
  std::vector<int> first_part{0};
  int64_t floats = 0;
  for (const RowBlock& block : blocks) {
    first_part.push_back(first_part.back() + block.chunks());
    floats += block.chunks() * block.count * width;
  }
  const int num_parts = first_part.back();
  if (count >= kFewBlocks || num_parts == count || floats > kSplitFloats) {
    parallel(count, [&](int b) { whole(BlockTask<T>(shape, cache, step, q, stride, blocks[b]), blocks[b], out); });
    return;
  }
  static thread_local std::vector<float> mixed;
  if (static_cast<int64_t>(mixed.size()) < floats) mixed.resize(floats);
  std::vector<Seen> parts(num_parts);
  float* free = mixed.data();
  for (int b = 0; b < count; ++b)
    for (int part = first_part[b]; part < first_part[b + 1]; ++part, free += blocks[b].count * width) parts[part].mixed = free;
  parallel(num_parts, [&](int part) {
    const int b = static_cast<int>(std::upper_bound(first_part.begin(), first_part.end(), part) - first_part.begin()) - 1;
    BlockTask<T>(shape, cache, step, q, stride, blocks[b]).look(part - first_part[b], parts[part]);
  });
  parallel(count, [&](int b) {
    const BlockTask<T> task(shape, cache, step, q, stride, blocks[b]);
    Seen& seen = parts[first_part[b]];
    for (int part = first_part[b] + 1; part < first_part[b + 1]; ++part) task.join(seen, parts[part]);
    task.answer(seen, out);
  });
}

template void store_kv(const Shape&, const Cache&, int64_t, const bf16*, const bf16*);
template void store_kv(const Shape&, const Cache&, int64_t, const float*, const float*);
template void attend(const Shape&, const Cache&, const Step&, const bf16*, int64_t, bf16*);
template void attend(const Shape&, const Cache&, const Step&, const float*, int64_t, float*);

}  // namespace glm
