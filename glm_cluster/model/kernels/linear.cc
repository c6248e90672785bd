// needs: avx512f avx512bw avx512vl avx512_bf16 avx512_vnni
#include "linear.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "team.h"
#include "vec.h"

namespace glm {
namespace {

constexpr int kPanel = 64;    // rows of a weight side by side: four registers
constexpr int kMostRows = 6;  // of x at once: 24 sums, 4 words of the weight, one of x
constexpr int kPartWords = 512;  // of a panel that all rows of x pass over while they are in the cache
constexpr int kLine = 64;

int64_t words_in(int64_t columns, int dtype) { return dtype == kFloat ? columns : dtype == kBf16 ? columns / 2 : (columns + 3) / 4; }

// What to bring into the cache meanwhile: a word of the panel's next part with every `every` words of this one.
struct Ahead {
  const int32_t* at;
  int every;
};

// Adds R rows of x times a part of a panel, words [0, num_words), to sums [R, 64].
template <typename Words, int R>
void multiply(const int32_t* x, int64_t x_stride, const int32_t* panel, int num_words, int32_t* sums, Ahead ahead) {
  typename Words::Sum sum[R][4];
  memcpy(sum, sums, sizeof sum);
  for (int k = 0; k < num_words;) {
    for (int line = 0; line < kPanel * 4; line += kLine) _mm_prefetch(reinterpret_cast<const char*>(ahead.at) + line, _MM_HINT_T1);
    ahead.at += kPanel;
    for (const int stop = std::min(num_words, k + ahead.every); k < stop; ++k, panel += kPanel) {
      const __m512i w0 = _mm512_loadu_si512(panel), w1 = _mm512_loadu_si512(panel + 16),
                    w2 = _mm512_loadu_si512(panel + 32), w3 = _mm512_loadu_si512(panel + 48);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512i row = _mm512_set1_epi32(x[r * x_stride + k]);
        sum[r][0] = Words::add(sum[r][0], row, w0);
        sum[r][1] = Words::add(sum[r][1], row, w1);
        sum[r][2] = Words::add(sum[r][2], row, w2);
        sum[r][3] = Words::add(sum[r][3], row, w3);
      }
    }
  }
  memcpy(sums, sum, sizeof sum);
}

template <typename Words>
void multiply(int rows, const int32_t* x, int64_t x_stride, const int32_t* panel, int num_words, int32_t* sums, Ahead ahead) {
  switch (rows) {
    case 1: return multiply<Words, 1>(x, x_stride, panel, num_words, sums, ahead);
    case 2: return multiply<Words, 2>(x, x_stride, panel, num_words, sums, ahead);
    case 3: return multiply<Words, 3>(x, x_stride, panel, num_words, sums, ahead);
    case 4: return multiply<Words, 4>(x, x_stride, panel, num_words, sums, ahead);
    case 5: return multiply<Words, 5>(x, x_stride, panel, num_words, sums, ahead);
    default: return multiply<Words, 6>(x, x_stride, panel, num_words, sums, ahead);
  }
}

// The largest magnitude; NaN if there is one, which a maximum would forget.
template <typename T>
float largest_of(const T* row, int64_t columns) {
  __m512 peak = _mm512_setzero_ps();
  __mmask16 broken = 0;
  for (int64_t c = 0; c < columns; c += 16) {
    const __m512 value = load(row + c, lanes(columns - c));
    broken |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    peak = _mm512_max_ps(peak, _mm512_abs_ps(value));
  }
  return broken ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(peak);
}

// Rows as unsigned bytes around 128, each with its own scale: a neighbour cannot move them.
struct Quantized {
  std::vector<int32_t> words;
  std::vector<float> scales;

  template <typename T>
  Quantized(const T* x, int64_t rows, int64_t columns) : words(rows * words_in(columns, kInt8)), scales(rows) {
    const int64_t num_words = words_in(columns, kInt8);
    parallel(static_cast<int>(rows), [&](int r) {
      const T* row = x + r * columns;
      const float largest = largest_of(row, columns);
      scales[r] = largest / 127.0f;
      const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
      uint8_t* bytes = reinterpret_cast<uint8_t*>(words.data() + r * num_words);
      for (int64_t c = 0; c < num_words * 4; c += 16) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load(row + c, lanes(std::max<int64_t>(0, columns - c))), inverse));
        const __m128i biased = _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(128)));
        _mm_mask_storeu_epi8(bytes + c, lanes(num_words * 4 - c), biased);
      }
    });
  }
};

// 64 finished sums of one row, as y has them.
template <typename T>
void finish(const Weight& w, const void* sums, const float* x_scale, int64_t first, T* y) {
  for (int64_t at = first; at < std::min(w.rows, first + kPanel); at += 16) {
    const __mmask16 mask = lanes(w.rows - at);
    const char* lane = static_cast<const char*>(sums) + (at - first) * 4;
    __m512 value = _mm512_loadu_ps(lane);
    if (w.dtype == kInt8) {
      const __m512i centred = _mm512_sub_epi32(_mm512_loadu_si512(lane), _mm512_maskz_loadu_epi32(mask, w.offsets + at));
      const __m512 scale = _mm512_mul_ps(load(w.scales + at, mask), _mm512_set1_ps(*x_scale));
      value = _mm512_mul_ps(_mm512_cvtepi32_ps(centred), scale);
    }
    if (w.bias != nullptr) value = _mm512_add_ps(value, load(static_cast<const T*>(w.bias) + at, mask));
    store(y + at, value, mask);
  }
}

template <typename Words, typename T>
void linear(const Weight& w, const int32_t* x, const float* x_scales, T* y, int64_t rows) {
  const int64_t num_words = words_in(w.columns, w.dtype), panel_words = num_words * kPanel;
  const int panels = static_cast<int>((w.rows + kPanel - 1) / kPanel), threads = team_size();
  const int64_t tiles = (rows + kMostRows - 1) / kMostRows;
  parallel(panels, [&](int p) {
    static thread_local std::vector<int32_t> sums;
    sums.assign(rows * kPanel, 0);
    const int32_t* panel = w.words + p * panel_words;
    const int32_t* next_panel = w.words + (p + threads < panels ? p + threads : p) * panel_words;  // likely this thread's
    for (int64_t first = 0; first < num_words; first += kPartWords) {
      const int count = static_cast<int>(std::min<int64_t>(kPartWords, num_words - first));
      const int32_t* next = first + count < num_words ? panel + (first + count) * kPanel : next_panel;
      for (int64_t t = 0, row = 0; t < tiles; ++t) {
        const int tile_rows = static_cast<int>(rows / tiles + (t < rows % tiles));
        const int32_t* part = panel + first * kPanel;
        const Ahead ahead = tiles == 1 ? Ahead{next, count}  // the processor sees a stream and runs ahead by itself
                                       : Ahead{next + t * (count / tiles) * kPanel, static_cast<int>(tiles)};
        multiply<Words>(tile_rows, x + row * num_words + first, num_words, part, count, sums.data() + row * kPanel, ahead);
        row += tile_rows;
      }
    }
    for (int64_t r = 0; r < rows; ++r)
      finish(w, sums.data() + r * kPanel, x_scales == nullptr ? nullptr : x_scales + r, int64_t{p} * kPanel, y + r * w.rows);
  });
}

// One row of a weight into its place.
template <typename Word>
void place(int32_t* words, int64_t num_words, int64_t row, Word word) {
  int32_t* out = words + row / kPanel * kPanel * num_words + row % kPanel;
  for (int64_t k = 0; k < num_words; ++k) out[k * kPanel] = word(k);
}

// As int8: symmetric, a scale a row.
template <typename T>
void pack_bytes(int32_t* words, float* scale, int32_t* offset, int64_t row, const T* from, int64_t columns) {
  const float largest = largest_of(from, columns), inverse = largest > 0 ? 127.0f / largest : 0.0f;
  std::vector<int8_t> bytes(words_in(columns, kInt8) * 4);
  int32_t sum = 0;
  for (int64_t c = 0; c < columns; c += 16) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load(from + c, lanes(columns - c)), _mm512_set1_ps(inverse)));
    _mm_mask_storeu_epi8(bytes.data() + c, lanes(columns - c), _mm512_cvtepi32_epi8(whole));
    sum += _mm512_reduce_add_epi32(whole);
  }
  *scale = largest / 127.0f;
  *offset = 128 * sum;
  const int32_t* from_words = reinterpret_cast<const int32_t*>(bytes.data());
  place(words, words_in(columns, kInt8), row, [&](int64_t k) { return from_words[k]; });
}

}  // namespace

template <typename T>
void linear(const Weight& w, const T* x, T* y, int64_t rows) {
  if (w.dtype == kInt8) {
    const Quantized q(x, rows, w.columns);
    linear<ByteWords>(w, q.words.data(), q.scales.data(), y, rows);
  } else {
    linear<WordsOf<T>>(w, reinterpret_cast<const int32_t*>(x), nullptr, y, rows);
  }
}

template void linear(const Weight&, const bf16*, bf16*, int64_t);
template void linear(const Weight&, const float*, float*, int64_t);

}  // namespace glm

// Packs rows [count, columns] of dtype `from` as rows first, first + 1, ... of a weight whose memory starts at zero.
extern "C" void glm_pack(glm::Weight* w, int64_t first, const void* rows, int64_t count, int32_t from) {
  using namespace glm;
  int32_t* words = const_cast<int32_t*>(w->words);
  const int64_t num_words = words_in(w->columns, w->dtype), bytes = w->columns * (from == kFloat ? 4 : 2);
  constexpr int64_t kRows = 64;
  parallel(static_cast<int>((count + kRows - 1) / kRows), [&](int part) {
    for (int64_t r = part * kRows; r < std::min(count, (part + 1) * kRows); ++r) {
      const char* row = static_cast<const char*>(rows) + r * bytes;
      if (w->dtype == kInt8) {
        float* scale = const_cast<float*>(w->scales) + first + r;
        int32_t* offset = const_cast<int32_t*>(w->offsets) + first + r;
        if (from == kFloat) pack_bytes(words, scale, offset, first + r, reinterpret_cast<const float*>(row), w->columns);
        else pack_bytes(words, scale, offset, first + r, reinterpret_cast<const bf16*>(row), w->columns);
      } else {
        const int32_t* from_words = reinterpret_cast<const int32_t*>(row);
        place(words, num_words, first + r, [&](int64_t k) { return from_words[k]; });
      }
    }
  });
}

extern "C" void glm_linear(const glm::Weight* w, const void* x, void* y, int64_t rows, int32_t dtype) {
  using namespace glm;
  if (dtype == kFloat) linear(*w, static_cast<const float*>(x), static_cast<float*>(y), rows);
  else linear(*w, static_cast<const bf16*>(x), static_cast<bf16*>(y), rows);
}
