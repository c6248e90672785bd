// x [rows, columns] times a packed weight. A row's bits depend on nothing but the row: each output is one chain of
// additions along the columns, whatever the number of rows and of threads.
#pragma once
#include "abi.h"

namespace glm {

// y [rows, w.rows] = x [rows, w.columns] W^T + bias. T is the dtype of x and y.
template <typename T>
void linear(const Weight& w, const T* x, T* y, int64_t rows);

}  // namespace glm
