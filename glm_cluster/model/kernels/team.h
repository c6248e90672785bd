// The threads that share a kernel's tasks. Which thread computes a task never changes its bits: tasks share no sum.
#pragma once
#include <cstdint>

namespace glm {

// A callable that need not outlive the call, without an allocation.
struct Task {
  void (*call)(const void* body, int index);
  const void* body;
};

void run_tasks(int count, Task task);

// Threads that take tasks, the caller included.
int team_size();

// Calls body(0) ... body(count - 1), each once, on the calling thread and on the team's; returns when all are done.
// The caller takes tasks too and waits only for those somebody has begun: a team that sleeps costs nothing but its help.
template <typename Body>
void parallel(int count, const Body& body) {
  run_tasks(count, {[](const void* b, int index) { (*static_cast<const Body*>(b))(index); }, &body});
}

}  // namespace glm
