// Collectives between the ranks of one host, through a segment of memory that all of them have mapped.
//
// A collective goes in turns of one chunk. In a turn every rank copies its chunk into its slot, all meet, and every
// rank reads the others' slots. There are two sets of slots, used in alternation, so that one meeting a turn is enough:
// a rank may write its slot of turn t once everybody has read those of turn t - 2, and who came to the meeting of
// turn t - 1 has.
//
// Sums are taken in rank order in fp32 and rounded once, element by element: the bits depend neither on where an
// element lies nor on how many lie beside it.
#include "floats.h"

#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using glm::floats::Bfloat16;
using glm::floats::Float16;
using glm::floats::Float32;

constexpr int kMaxSize = 64;  // ranks
constexpr int64_t kLine = 64;  // bytes that two ranks should not both write
constexpr int64_t kPage = 4096;
constexpr int64_t kBlock = 1024;  // elements summed at a time, in the first-level cache
constexpr int64_t kShareBytes = 65536;  // chunks from this size on are summed by shares
constexpr int kLooks = 32;  // at the arrivals, between looks at the clock
constexpr int kMisses = 3;  // spins in vain after which to spin no more,
constexpr int kProbe = 16;  // except once in so many waits
constexpr int64_t kNapNs = 250'000'000;  // between looks at whether the others live

enum Status : int { kOk = 0, kTimeout = 1, kRankEnded = 2 };
enum Dtype : int { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

struct alignas(kLine) Count {
  std::atomic<uint32_t> value;
};

// What all ranks write, at the segment's start. It begins as zeros.
struct alignas(kPage) Header {
  Count arrivals;         // at all meetings so far, of all ranks, modulo 2^32
  Count sleepers;         // ranks that want to be woken
  Count goals[kMaxSize];  // of each rank: `arrivals` when all have come to the meeting that it has come to
};
static_assert(std::atomic<uint32_t>::is_always_lock_free);

// The sum of `size` parts, in their order. `out` may be one of them.
template <typename T>
void add(const typename T::Stored* const* parts, int size, int64_t count, typename T::Stored* out) {
  float sums[kBlock];
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t length = std::min(kBlock, count - start);
    const auto *first = parts[0] + start, *second = parts[1] + start;
    for (int64_t i = 0; i < length; ++i) sums[i] = T::widen(first[i]) + T::widen(second[i]);
    for (int rank = 2; rank < size; ++rank) {
      const auto* part = parts[rank] + start;
      for (int64_t i = 0; i < length; ++i) sums[i] += T::widen(part[i]);
    }
    for (int64_t i = 0; i < length; ++i) out[start + i] = T::narrow(sums[i]);
  }
}

int64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Group {
 public:
  Group(char* segment, int64_t bytes, int rank, int size, const int* lives, int64_t spin_ns, int64_t timeout_ns)
      : header_(reinterpret_cast<Header*>(segment)),
        slots_(segment + sizeof(Header)),
        slot_bytes_((bytes - static_cast<int64_t>(sizeof(Header))) / (2 * size) / kPage * kPage),
        rank_(rank),
        size_(size),
        spin_ns_(spin_ns),
        timeout_ns_(timeout_ns) {
    for (int peer = 0; peer < size; ++peer) lives_.push_back({lives[peer], POLLIN, 0});
  }

  template <typename T>
  Status sum(const typename T::Stored* x, typename T::Stored* out, int64_t count) {
    const int64_t chunk = slot_bytes_ / static_cast<int64_t>(sizeof *x);
    for (int64_t start = 0; start < count; start += chunk) {
      const int64_t length = std::min(chunk, count - start);
      const bool by_shares = size_ > 2 && length * static_cast<int64_t>(sizeof *x) >= kShareBytes;
      const Status status = by_shares ? sum_by_shares<T>(x + start, out + start, length)
                                      : sum_all<T>(x + start, out + start, length);
      if (status != kOk) return status;
    }
    return kOk;
  }

  // The ranks' [rows, row_bytes] beside each other on rank 0, [rows, size * row_bytes].
  Status gather(const char* part, char* out, int64_t rows, int64_t row_bytes) {
    const int64_t bytes = rows * row_bytes;
    for (int64_t start = 0; start < bytes; start += slot_bytes_) {
      const int64_t length = std::min(slot_bytes_, bytes - start);
      ++turn_;
      if (rank_ != 0) std::memcpy(slot(rank_), part + start, length);
      if (const Status status = meet(); status != kOk) return status;
      if (rank_ != 0) continue;
      place(part + start, out, start, length, row_bytes, 0);
      for (int peer = 1; peer < size_; ++peer) place(slot(peer), out, start, length, row_bytes, peer);
    }
    return kOk;
  }

  // A rank that has not come to the meeting that failed.
  int missing() const {
    int peer = 0;
    while (peer < size_ - 1 && has_come(peer)) ++peer;
    return peer;
  }

 private:
  char* slot(int rank) const { return slots_ + ((turn_ & 1) * size_ + rank) * slot_bytes_; }

  // Every rank adds up everything: one meeting.
  template <typename T>
  Status sum_all(const typename T::Stored* x, typename T::Stored* out, int64_t count) {
    ++turn_;
    std::memcpy(slot(rank_), x, count * sizeof *x);
    if (const Status status = meet(); status != kOk) return status;
    const typename T::Stored* parts[kMaxSize];
    for (int peer = 0; peer < size_; ++peer) parts[peer] = reinterpret_cast<typename T::Stored*>(slot(peer));
    parts[rank_] = x;
    add<T>(parts, size_, count, out);
    return kOk;
  }

  // Each rank adds up its share, in the place of its own part, and fetches the others': less to read, two meetings.
  template <typename T>
  Status sum_by_shares(const typename T::Stored* x, typename T::Stored* out, int64_t count) {
    ++turn_;
    std::memcpy(slot(rank_), x, count * sizeof *x);
    if (const Status status = meet(); status != kOk) return status;
    const int64_t share = ((count + size_ - 1) / size_ + kLine) & -kLine;
    const auto begin = [&](int rank) { return std::min(count, rank * share); };
    typename T::Stored* parts[kMaxSize];
    const typename T::Stored* shares[kMaxSize];
    for (int peer = 0; peer < size_; ++peer) {
      parts[peer] = reinterpret_cast<typename T::Stored*>(slot(peer));
      shares[peer] = parts[peer] + begin(rank_);
    }
    add<T>(shares, size_, begin(rank_ + 1) - begin(rank_), parts[rank_] + begin(rank_));
    if (const Status status = meet(); status != kOk) return status;
    for (int peer = 0; peer < size_; ++peer) {
      const int64_t length = begin(peer + 1) - begin(peer);
      std::memcpy(out + begin(peer), parts[peer] + begin(peer), length * sizeof *x);
    }
    return kOk;
  }

  // Bytes [start, start + length) of a rank's rows, to their places in the joined rows.
  void place(const char* from, char* out, int64_t start, int64_t length, int64_t row_bytes, int rank) const {
    for (int64_t done = 0; done < length;) {
      const int64_t row = (start + done) / row_bytes, column = (start + done) % row_bytes;
      const int64_t piece = std::min(length - done, row_bytes - column);
      std::memcpy(out + (row * size_ + rank) * row_bytes + column, from + done, piece);
      done += piece;
    }
  }

  // Wait until every rank has come here as often as this one.
  Status meet() {
    goal_ += static_cast<uint32_t>(size_);
    header_->goals[rank_].value.store(goal_);
    const uint32_t arrivals = header_->arrivals.value.fetch_add(1) + 1;
    if (arrivals == goal_) {
      if (header_->sleepers.value.load() != 0) wake();
      return kOk;
    }
    return is_met() || (is_spin_promising() && spin()) ? kOk : sleep();
  }

  // Whether a count that only grows has got there, past 2^32 too.
  bool reached(uint32_t count) const { return static_cast<int32_t>(count - goal_) >= 0; }

  bool is_met() const { return reached(header_->arrivals.value.load(std::memory_order_acquire)); }

  // Not if it was in vain lately, as it is where the others need this core to come: then only now and then.
  bool is_spin_promising() {
    ++waits_;
    return misses_ < kMisses || waits_ % kProbe == 0;
  }

  bool spin() {
    for (const int64_t end = now_ns() + spin_ns_; now_ns() < end;) {
      for (int round = 0; round < kLooks; ++round) {
        if (is_met()) {
          misses_ = 0;
          return true;
        }
        pause();
      }
    }
    ++misses_;
    return false;
  }

  Status sleep() {
    header_->sleepers.value.fetch_add(1);
    Status status = kOk;
    for (const int64_t end = now_ns() + timeout_ns_;;) {
      const uint32_t seen = header_->arrivals.value.load();
      if (reached(seen)) break;
      if (now_ns() >= end) status = kTimeout;
      if (has_lost_one()) status = kRankEnded;
      if (status != kOk) break;
      const timespec nap{0, std::min(kNapNs, timeout_ns_)};
      syscall(SYS_futex, &header_->arrivals.value, FUTEX_WAIT, seen, &nap, nullptr, 0);
    }
    header_->sleepers.value.fetch_sub(1);
    return status;
  }

  // Whether a rank has ended before it came here.
  bool has_lost_one() {
    if (poll(lives_.data(), lives_.size(), 0) <= 0) return false;
    for (int peer = 0; peer < size_; ++peer) {
      if (lives_[peer].revents != 0 && !has_come(peer)) return true;
    }
    return false;
  }

  bool has_come(int peer) const { return reached(header_->goals[peer].value.load()); }

  void wake() { syscall(SYS_futex, &header_->arrivals.value, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0); }

  Header* const header_;
  char* const slots_;
  const int64_t slot_bytes_;
  const int rank_, size_;
  const int64_t spin_ns_, timeout_ns_;
  std::vector<pollfd> lives_;  // readable when the rank's process has ended; negative where nobody can tell
  int64_t turn_ = 0;
  uint32_t waits_ = 0;
  int misses_ = 0;  // spins in vain since one was not
  uint32_t goal_ = 0;  // arrivals when every rank has come to the meeting this one was at last
};

}  // namespace

extern "C" {

void* glm_group_open(void* segment, int64_t bytes, int rank, int size, const int* lives, int64_t spin_ns,
                     int64_t timeout_ns) {
  return new Group(static_cast<char*>(segment), bytes, rank, size, lives, spin_ns, timeout_ns);
}

int glm_group_missing(void* group) { return static_cast<Group*>(group)->missing(); }

void glm_group_close(void* group) { delete static_cast<Group*>(group); }

int glm_group_sum(void* group, const void* x, void* out, int64_t count, int dtype) {
  auto* self = static_cast<Group*>(group);
  const auto* halves = static_cast<const uint16_t*>(x);
  if (dtype == kBfloat16) return self->sum<Bfloat16>(halves, static_cast<uint16_t*>(out), count);
  if (dtype == kFloat16) return self->sum<Float16>(halves, static_cast<uint16_t*>(out), count);
  return self->sum<Float32>(static_cast<const float*>(x), static_cast<float*>(out), count);
}

int glm_group_gather(void* group, const void* part, void* out, int64_t rows, int64_t row_bytes) {
  return static_cast<Group*>(group)->gather(static_cast<const char*>(part), static_cast<char*>(out), rows, row_bytes);
}
}
