// needs: avx512f
#include "team.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <mutex>
#include <thread>

namespace glm {
namespace {

constexpr int kSpins = 2000;  // of about 15 to 40 ns: longer than what lies between two kernels of a step
constexpr uint64_t kCountBits = 22;
constexpr uint64_t kCountMask = (1u << kCountBits) - 1;

// One word tells everything a claim depends on, so that a late thread can never take a task of a job it has not read:
// generation (20 bits), tasks in the job (22), tasks taken (22).
std::atomic<uint64_t> state{0};
std::atomic<uint32_t> bell{0};  // counts jobs; sleepers wait for it to change
std::atomic<int> sleepers{0};
std::atomic<int> finished{0};
Task job;
std::mutex one_job;
std::atomic<int> wanted{0};  // workers beside the caller
int started = 0;

void take_tasks() {
  uint64_t seen = state.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t taken = seen & kCountMask, count = (seen >> kCountBits) & kCountMask;
    if (taken >= count) return;
    const Task mine = job;
    if (!state.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    mine.call(mine.body, static_cast<int>(taken));
    finished.fetch_add(1, std::memory_order_release);
    seen = state.load(std::memory_order_acquire);
  }
}

void futex(std::atomic<uint32_t>* word, int op, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), op, value, nullptr, nullptr, 0);
}

void work(int index) {
  uint32_t heard = bell.load(std::memory_order_acquire);
  for (;;) {
    if (index < wanted.load(std::memory_order_relaxed)) take_tasks();
    int spins = 0;
    while (bell.load(std::memory_order_acquire) == heard && spins++ < kSpins) _mm_pause();
    if (bell.load(std::memory_order_acquire) == heard) {
      sleepers.fetch_add(1);
      while (bell.load() == heard) futex(&bell, FUTEX_WAIT_PRIVATE, heard);
      sleepers.fetch_sub(1);
    }
    heard = bell.load(std::memory_order_acquire);
  }
}

}  // namespace

void run_tasks(int count, Task task) {
  if (count <= 0) return;
  std::unique_lock<std::mutex> lock(one_job, std::try_to_lock);
  if (!lock.owns_lock() || count == 1 || wanted.load(std::memory_order_relaxed) == 0) {
    for (int i = 0; i < count; ++i) task.call(task.body, i);
    return;
  }
  job = task;
  finished.store(0, std::memory_order_relaxed);
  const uint64_t generation = (state.load(std::memory_order_relaxed) >> (2 * kCountBits)) + 1;
  state.store(generation << (2 * kCountBits) | static_cast<uint64_t>(count) << kCountBits, std::memory_order_release);
  bell.fetch_add(1);
  if (sleepers.load() > 0) futex(&bell, FUTEX_WAKE_PRIVATE, INT_MAX);
  take_tasks();
  int spins = 0;
  while (finished.load(std::memory_order_acquire) < count) {
    if (++spins < kSpins) _mm_pause();
    else std::this_thread::yield();
  }
}

int team_size() { return wanted.load(std::memory_order_relaxed) + 1; }

}  // namespace glm

// Threads that share the work, the caller included. Threads once started are kept.
extern "C" void glm_set_threads(int threads) {
  std::lock_guard<std::mutex> lock(glm::one_job);
  glm::wanted.store(threads - 1);
  for (; glm::started < threads - 1; ++glm::started) std::thread(glm::work, glm::started).detach();
}
