// Threads for those who bring none.
#pragma once

#include "batchnorm.h"

namespace batchnorm {

using Task = void (*)(int64_t first, int64_t last, void *context);

// A bn_parallel_for on the library's own threads. They start at the first use, sleep while there is nothing to do, and
// start anew in a process that forked; a call while another one runs is served by the caller's own thread.
int pool_parallel_for(int64_t begin, int64_t end, int64_t grain, Task task, void *context);

int64_t pool_threads();
void pool_use_threads(int64_t threads);

}  // namespace batchnorm
