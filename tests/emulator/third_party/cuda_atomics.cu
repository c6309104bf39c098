// Atomics of every scope, through libcu++ and CUDA's own functions, for test_cuda_features.py.
#include <cuda/atomic>

/// Every thread of the grid adds to one counter of each scope and operation.
extern "C" __global__ void atomics(int* counters, unsigned long long* wide, float* sums) {
  __shared__ int block;
  if (threadIdx.x == 0) block = 0;
  __syncthreads();
  const int t = threadIdx.x, i = t + blockIdx.x * blockDim.x;
  cuda::atomic_ref<int, cuda::thread_scope_block>(block).fetch_add(t,
                                                                   cuda::std::memory_order_relaxed);
  cuda::atomic_ref<int, cuda::thread_scope_device>(counters[0]).fetch_add(1);
  cuda::atomic_ref<int, cuda::thread_scope_system>(counters[1])
      .fetch_max(i, cuda::std::memory_order_acq_rel);
  cuda::atomic_ref<int, cuda::thread_scope_device>(counters[2])
      .fetch_or(1 << t % 32, cuda::std::memory_order_release);
  atomicMin(&counters[3], -i);
  atomicXor(&counters[4], i);
  atomicInc((unsigned*)&counters[5], 1000);
  atomicAdd_system(&counters[6], i);
  atomicAnd_block(&counters[10 + blockIdx.x], ~(1 << t % 32));
  atomicAdd(wide, 1ull << 33);
  atomicMax(wide + 1, (unsigned long long)i << 20);
  atomicAdd(sums, 0.5f * i);
  int seen = *(volatile int*)&counters[8];
  for (int expected = seen + 1; seen != expected;) {  // an addition by compare-and-swap
    expected = seen;
    seen = atomicCAS(&counters[8], expected, expected + 2);
  }
  __syncthreads();
  if (t == 0) atomicAdd(&counters[9], block);
}

/// Block 0 hands a message to block 1 through flags of device scope, and gets an answer.
extern "C" __global__ void messages(int* data, int* flags, int* out) {
  cuda::atomic_ref<int, cuda::thread_scope_device> mine(flags[blockIdx.x]);
  cuda::atomic_ref<int, cuda::thread_scope_device> theirs(flags[blockIdx.x ^ 1]);
  for (int round = 1; round <= 3; ++round) {
    if (blockIdx.x == round % 2) {
      data[threadIdx.x] = (round == 1 ? 0 : data[threadIdx.x]) * 10 + threadIdx.x + round;
      __syncthreads();
      if (threadIdx.x == 0) mine.store(round, cuda::std::memory_order_release);
    } else {
      if (threadIdx.x == 0) {
        while (theirs.load(cuda::std::memory_order_acquire) != round) {
        }
      }
      __syncthreads();
    }
  }
  if (blockIdx.x == 0) out[threadIdx.x] = data[threadIdx.x];
}
