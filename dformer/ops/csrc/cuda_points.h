// What the CUDA kernels share: sizes, the place of a thread, the cells around a point, shared memory.
// Shapes and types as in cuda.cu.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "types.h"

constexpr int MAX_LEVELS = 64;
constexpr int MAX_CHANNELS = 256;
constexpr int THREADS = 256;
constexpr int SHARED_BYTES = 24 * 1024;

extern __shared__ __align__(16) unsigned char shared_memory[];

namespace {

// The sizes of a call; passed by value, so that nothing is copied to the device.
struct Layout {
    int64_t cells, queries;
    int heads, channels, points, all_points;  // of a level, of all levels
    int lanes, block_queries, points_at_once;
    int width[MAX_LEVELS], height[MAX_LEVELS], start[MAX_LEVELS];
};

template <class A>
struct alignas(4 * sizeof(A) > 16 ? 16 : 4 * sizeof(A)) Four {
    A at[4];
};

template <class T, int WIDTH>
struct alignas(sizeof(T) * WIDTH) Pack {
    T at[WIDTH];
};

template <class A, class T>
__device__ A to(T x) {
    return A(x);
}
template <>
__device__ float to<float, __half>(__half x) {
    return __half2float(x);
}
template <>
__device__ float to<float, __nv_bfloat16>(__nv_bfloat16 x) {
    return __bfloat162float(x);
}
template <>
__device__ __half to<__half, float>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __nv_bfloat16 to<__nv_bfloat16, float>(float x) {
    return __float2bfloat16_rn(x);
}

// What a thread works on.
struct Place {
    int head, query, lane;  // query of the block's, lane of the query's
    int64_t image, first;   // the block's image and first query

    __device__ explicit Place(const Layout& layout) {
        const int64_t blocks = (layout.queries + layout.block_queries - 1) / layout.block_queries;
        const int64_t tile = blockIdx.x / layout.heads;
        head = blockIdx.x % layout.heads;
        image = tile / blocks;
        first = tile % blocks * layout.block_queries;
        query = threadIdx.x / layout.lanes;
        lane = threadIdx.x % layout.lanes;
    }

    // flat index of (b, q, m)
    __device__ int64_t row(const Layout& layout, int of_block) const {
        return (image * layout.queries + first + of_block) * layout.heads + head;
    }
};

// The four cells around a point, upper left, upper right, lower left, lower right; -1: outside of the level.
template <class A>
struct Corners {
    int4 cell;
    A right, down;  // where in the square of the four: 0 to 1
};

// NaN counts as outside.
template <class A>
__device__ Corners<A> locate(const Layout& layout, int level, A location_x, A location_y) {
    const int w = layout.width[level], h = layout.height[level];
    A x = location_x * A(w) - A(0.5), y = location_y * A(h) - A(0.5);
    x = x > A(-2) ? x : A(-2);
    y = y > A(-2) ? y : A(-2);
    x = x < A(w + 1) ? x : A(w + 1);
    y = y < A(h + 1) ? y : A(h + 1);
    const A floor_x = floor(x), floor_y = floor(y);
    const int left = int(floor_x), top = int(floor_y);
    const bool in_left = left >= 0 && left < w, in_right = left >= -1 && left < w - 1;
    const bool in_top = top >= 0 && top < h, in_bottom = top >= -1 && top < h - 1;
    const int first = layout.start[level] + top * w + left;
    return {
        make_int4(in_top && in_left ? first : -1, in_top && in_right ? first + 1 : -1,
                  in_bottom && in_left ? first + w : -1, in_bottom && in_right ? first + w + 1 : -1),
        x - floor_x, y - floor_y};
}

// Shared memory of a block: for each point of each query the four cells, and four numbers beside them. The queries
// are innermost, padded by one, which avoids bank conflicts in both directions.
template <class A>
struct Shared {
    int4* cells;
    Four<A>* numbers;
    int stride;

    __device__ Shared(unsigned char* memory, const Layout& layout) {
        stride = layout.block_queries + 1;
        cells = reinterpret_cast<int4*>(memory);
        numbers = reinterpret_cast<Four<A>*>(cells + stride * layout.points_at_once);
    }
};

// Calls use(point of all, index in shared memory, row) for `count` points from `from` on, of all of the block's
// queries; the threads take them in their order in global memory.
template <class Use>
__device__ void for_points(const Layout& layout, const Place& place, int stride, int from, int count, Use use) {
    for (int i = threadIdx.x; i < count * layout.block_queries; i += blockDim.x) {
        const int query = i / count, point = i % count;
        if (place.first + query < layout.queries)
            use(from + point, point * stride + query, place.row(layout, query) * layout.all_points + from + point);
    }
}

}  // namespace
