// As much of CUDA as the kernels of dformer/ops/csrc use, on the CPU, so that their arithmetic can be tested where there
// is no GPU. Each thread of a block is a fiber; it runs until it waits for others. One block runs after the other.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(threads)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define CUDART_VERSION 0

using std::floor;
using std::max;
using std::min;

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1) : x(x), y(1), z(1) {}
};
struct int4 {
    int x, y, z, w;
};
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
using cudaStream_t = void*;
struct cudaFuncAttributes {};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};
inline const char* cudaGetErrorString(cudaError_t) { return "emulated error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
    return cudaSuccess;
}

inline dim3 threadIdx, blockIdx, blockDim;
alignas(16) inline unsigned char shared_memory[48 * 1024];

namespace emulated {

constexpr int WARP = 32;
constexpr size_t STACK = 64 * 1024;

struct Barrier {
    unsigned arrived = 0, generation = 0;
};

inline ucontext_t scheduler;
inline std::vector<ucontext_t> fibers;
inline std::vector<char> done;
inline std::vector<Barrier> barriers;  // of the block, then of each warp
inline std::vector<uint64_t> lanes;    // what each thread shows the others of its warp
inline void (*body)(void*);
inline void* argument;

inline void yield() {
    const unsigned self = threadIdx.x;
    swapcontext(&fibers[self], &scheduler);
}

inline void wait(Barrier& barrier, unsigned count) {
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        ++barrier.generation;
    }
    while (barrier.generation == generation) yield();
}

inline Barrier& warp() { return barriers[1 + threadIdx.x / WARP]; }

inline void enter() {
    body(argument);
    done[threadIdx.x] = 1;
    yield();
}

// Runs the threads of a block in turn, the last one first in every other block.
inline void run_block(unsigned threads, char* stacks) {
    fibers.assign(threads, {});
    done.assign(threads, 0);
    barriers.assign(1 + threads / WARP, {});
    lanes.assign(threads, 0);
    for (unsigned i = 0; i < threads; ++i) {
        getcontext(&fibers[i]);
        fibers[i].uc_stack.ss_sp = stacks + i * STACK;
        fibers[i].uc_stack.ss_size = STACK;
        makecontext(&fibers[i], enter, 0);
    }
    for (bool running = true; running;) {
        running = false;
        for (unsigned j = 0; j < threads; ++j) {
            const unsigned i = blockIdx.x % 2 ? threads - 1 - j : j;
            if (done[i]) continue;
            running = true;
            threadIdx.x = i;
            swapcontext(&scheduler, &fibers[i]);
        }
    }
}

}  // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::barriers[0], blockDim.x); }
inline void __syncwarp() { emulated::wait(emulated::warp(), emulated::WARP); }

template <class T>
T __shfl_xor_sync(unsigned, T x, int other) {
    std::memcpy(&emulated::lanes[threadIdx.x], &x, sizeof x);
    __syncwarp();
    std::memcpy(&x, &emulated::lanes[threadIdx.x ^ unsigned(other)], sizeof x);
    __syncwarp();
    return x;
}

template <class T>
T atomicAdd(T* to, T x) {
    const T before = *to;
    *to += x;
    return before;
}

inline long long __double2ll_rn(double x) { return std::llrint(x); }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* configuration, void (*kernel)(Parameters...), Arguments&&... arguments) {
    if (configuration->dynamicSmemBytes > sizeof shared_memory) return cudaErrorInvalidValue;
    auto call = [&] { kernel(arguments...); };
    emulated::body = [](void* it) { (*static_cast<decltype(call)*>(it))(); };
    emulated::argument = &call;
    blockDim = configuration->blockDim;
    const std::unique_ptr<char[]> stacks(new char[blockDim.x * emulated::STACK]);
    for (blockIdx.x = 0; blockIdx.x < configuration->gridDim.x; ++blockIdx.x) {
        std::memset(shared_memory, 0xff, sizeof shared_memory);  // NaN, and -1: what is not written is not to be read
        emulated::run_block(blockDim.x, stacks.get());
    }
    return cudaSuccess;
}
