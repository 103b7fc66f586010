// Multi-scale deformable attention on CUDA (see ../reference.py for the definition).
//
// Shapes: B batch, L levels of h_l x w_l cells, S cells in all, Q queries, M heads, D channels per head, P points.
// All arrays are contiguous:
//   value, grad_value            (B, S, M, D)
//   locations, grad_locations    (B, Q, M, L, P, 2), x and y
//   weights, grad_weights        (B, Q, M, L, P)
//   output, grad_output          (B, Q, M, D)
// T is the type of value and output; A is the type of all else and of the sums: double for double, else float.
//
// A block works on one head of one image and on QUERIES queries; LANES threads of a warp share a query, each with
// CHUNKS times WIDTH adjacent channels (16 bytes where D and alignment allow). Points are processed in
// chunks: first all threads together find the four cells around each point and store them in shared memory, reading
// locations and weights once and in order; then each thread goes through the points of its query.
//
// Plain functions on plain arrays: neither Python nor PyTorch is included or linked to, so a build outlives both.

#include "cuda_points.h"

// Whether there are atomic sums of four floats at once.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && 100 * __CUDACC_VER_MAJOR__ + __CUDACC_VER_MINOR__ >= 1201
#define FOUR_AT_ONCE 1
#else
#define FOUR_AT_ONCE 0
#endif

namespace {

template <class T, class A, int WIDTH, int CHUNKS>
__global__ void __launch_bounds__(THREADS) forward_kernel(
    const __grid_constant__ Layout layout, const T* __restrict__ value, const A* __restrict__ locations,
    const A* __restrict__ weights, T* __restrict__ output) {
    const Place place(layout);
    const Shared<A> shared(shared_memory, layout);
    const int64_t stride = int64_t(layout.heads) * layout.channels;
    const T* image = value + place.image * layout.cells * stride + int64_t(place.head) * layout.channels;
    const bool works = place.first + place.query < layout.queries;
    A total[CHUNKS][WIDTH] = {};
    for (int from = 0; from < layout.all_points; from += layout.points_at_once) {
        const int count = min(layout.points_at_once, layout.all_points - from);
        for_points(layout, place, shared.stride, from, count, [&](int point, int index, int64_t row) {
            const Corners<A> c = locate(layout, point / layout.points, locations[2 * row], locations[2 * row + 1]);
            const A weight = weights[row], up = weight * (1 - c.down), down = weight * c.down;
            shared.cells[index] = c.cell;
            shared.numbers[index] = {up * (1 - c.right), up * c.right, down * (1 - c.right), down * c.right};
        });
        __syncthreads();
        for (int point = 0; works && point < count; ++point) {
            const int4 cells = shared.cells[point * shared.stride + place.query];
            const Four<A> weight = shared.numbers[point * shared.stride + place.query];
            const int cell[4] = {cells.x, cells.y, cells.z, cells.w};
#pragma unroll
            for (int k = 0; k < CHUNKS; ++k) {
                const int channel = (k * layout.lanes + place.lane) * WIDTH;
                if (channel >= layout.channels) break;
                Pack<T, WIDTH> pack[4] = {};
#pragma unroll
                for (int c = 0; c < 4; ++c)
                    if (cell[c] >= 0)
                        pack[c] = *reinterpret_cast<const Pack<T, WIDTH>*>(image + cell[c] * stride + channel);
#pragma unroll
                for (int c = 0; c < 4; ++c)
#pragma unroll
                    for (int i = 0; i < WIDTH; ++i)  // a cell outside counts nothing, whatever its weight is
                        total[k][i] += cell[c] >= 0 ? weight.at[c] * to<A>(pack[c].at[i]) : A(0);
            }
        }
        __syncthreads();
    }
    if (!works) return;
    T* row = output + place.row(layout, place.query) * layout.channels;
#pragma unroll
    for (int k = 0; k < CHUNKS; ++k) {
        const int channel = (k * layout.lanes + place.lane) * WIDTH;
        if (channel >= layout.channels) break;
        Pack<T, WIDTH> pack;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) pack.at[i] = to<T>(total[k][i]);
        *reinterpret_cast<Pack<T, WIDTH>*>(row + channel) = pack;
    }
}

template <int WIDTH>
__device__ void add(double* to, const double (&x)[WIDTH]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) atomicAdd(to + i, x[i]);
}

template <int WIDTH>
__device__ void add(float* to, const float (&x)[WIDTH]) {
    constexpr int FOURS = FOUR_AT_ONCE ? WIDTH / 4 * 4 : 0;
#pragma unroll
    for (int i = 0; i < FOURS; i += 4) {
#if FOUR_AT_ONCE
        atomicAdd(reinterpret_cast<float4*>(to + i), make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]));
#endif
    }
#pragma unroll
    for (int i = FOURS; i < WIDTH; ++i) atomicAdd(to + i, x[i]);
}

// Sums of integers do not depend on their order.
template <class A, int WIDTH>
__device__ void add_fixed(int64_t* to, const A (&x)[WIDTH], double scale) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
        atomicAdd(reinterpret_cast<unsigned long long*>(to + i), (unsigned long long)__double2ll_rn(x[i] * scale));
}

// `scale` is null, and grad_value of type A; or it points to the factor by which grad_value, of type int64, is scaled.
template <class T, class A, int WIDTH, int CHUNKS>
__global__ void __launch_bounds__(THREADS) backward_kernel(
    const __grid_constant__ Layout layout, const T* __restrict__ grad_output, const T* __restrict__ value,
    const A* __restrict__ locations, const A* __restrict__ weights, const double* __restrict__ scale,
    void* __restrict__ grad_value, A* __restrict__ grad_locations, A* __restrict__ grad_weights) {
    const Place place(layout);
    const Shared<A> shared(shared_memory, layout);
    const int64_t stride = int64_t(layout.heads) * layout.channels;
    const int64_t image = place.image * layout.cells * stride + int64_t(place.head) * layout.channels;
    const bool works = place.first + place.query < layout.queries;
    const double fixed_scale = scale ? *scale : 0;
    A gradient[CHUNKS][WIDTH] = {};
    if (works) {
        const T* row = grad_output + place.row(layout, place.query) * layout.channels;
#pragma unroll
        for (int k = 0; k < CHUNKS; ++k) {
            const int channel = (k * layout.lanes + place.lane) * WIDTH;
            if (channel >= layout.channels) break;
            const auto pack = *reinterpret_cast<const Pack<T, WIDTH>*>(row + channel);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) gradient[k][i] = to<A>(pack.at[i]);
        }
    }
    for (int from = 0; from < layout.all_points; from += layout.points_at_once) {
        const int count = min(layout.points_at_once, layout.all_points - from);
        for_points(layout, place, shared.stride, from, count, [&](int point, int index, int64_t row) {
            const Corners<A> c = locate(layout, point / layout.points, locations[2 * row], locations[2 * row + 1]);
            shared.cells[index] = c.cell;
            shared.numbers[index] = {weights[row], c.right, c.down, A(0)};
        });
        __syncthreads();
        // A query beyond the last one has no cells, but its threads take part in the sums of their warp.
        for (int point = 0; point < count; ++point) {
            const int index = point * shared.stride + place.query;
            const int4 cells = works ? shared.cells[index] : make_int4(-1, -1, -1, -1);
            const Four<A> numbers = works ? shared.numbers[index] : Four<A>{};
            const A weight = numbers.at[0], right = numbers.at[1], down = numbers.at[2];
            const A share[4] = {
                (1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down};
            const int cell[4] = {cells.x, cells.y, cells.z, cells.w};
            A dot[4] = {};  // <grad_output, value at the corner>, this thread's part
#pragma unroll
            for (int k = 0; k < CHUNKS; ++k) {
                const int channel = (k * layout.lanes + place.lane) * WIDTH;
                if (channel >= layout.channels) break;
                Pack<T, WIDTH> pack[4] = {};
#pragma unroll
                for (int c = 0; c < 4; ++c)
                    if (cell[c] >= 0)
                        pack[c] = *reinterpret_cast<const Pack<T, WIDTH>*>(value + image + cell[c] * stride + channel);
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    if (cell[c] < 0) continue;
                    A part[WIDTH];
#pragma unroll
                    for (int i = 0; i < WIDTH; ++i) {
                        dot[c] += gradient[k][i] * to<A>(pack[c].at[i]);
                        part[i] = weight * share[c] * gradient[k][i];
                    }
                    const int64_t at = image + cell[c] * stride + channel;
                    if (scale)
                        add_fixed(static_cast<int64_t*>(grad_value) + at, part, fixed_scale);
                    else
                        add(static_cast<A*>(grad_value) + at, part);
                }
            }
            A grad_weight = share[0] * dot[0] + share[1] * dot[1] + share[2] * dot[2] + share[3] * dot[3];
            A grad_x = weight * ((1 - down) * (dot[1] - dot[0]) + down * (dot[3] - dot[2]));
            A grad_y = weight * ((1 - right) * (dot[2] - dot[0]) + right * (dot[3] - dot[1]));
            for (int other = layout.lanes / 2; other > 0; other /= 2) {
                grad_weight += __shfl_xor_sync(0xffffffff, grad_weight, other);
                grad_x += __shfl_xor_sync(0xffffffff, grad_x, other);
                grad_y += __shfl_xor_sync(0xffffffff, grad_y, other);
            }
            __syncwarp();
            if (works && place.lane == 0) shared.numbers[index] = {grad_weight, grad_x, grad_y, A(0)};
        }
        __syncthreads();
        for_points(layout, place, shared.stride, from, count, [&](int point, int index, int64_t row) {
            const Four<A> numbers = shared.numbers[index];
            grad_weights[row] = numbers.at[0];
            grad_locations[2 * row] = numbers.at[1] * A(layout.width[point / layout.points]);
            grad_locations[2 * row + 1] = numbers.at[2] * A(layout.height[point / layout.points]);
        });
        __syncthreads();
    }
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Bytes of shared memory for one point of each of a block's queries.
template <class A>
int shared_bytes(const Layout& layout) {
    return (layout.block_queries + 1) * int(sizeof(int4) + sizeof(Four<A>));
}

// The layout for threads of `width` channels; each thread works on `chunks` times as many.
template <class A>
Layout lay_out(const Sizes& size, int width, int* chunks) {
    Layout layout = {};
    layout.cells = size.cells;
    layout.queries = size.queries;
    layout.heads = int(size.heads);
    layout.channels = int(size.channels);
    layout.points = int(size.points);
    layout.all_points = int(size.levels * size.points);
    const int packs = (layout.channels + width - 1) / width;
    layout.lanes = 1;
    while (layout.lanes < packs && layout.lanes < 32) layout.lanes *= 2;
    *chunks = (packs + layout.lanes - 1) / layout.lanes;
    layout.block_queries = THREADS / layout.lanes;
    layout.points_at_once = min(layout.all_points, max(1, SHARED_BYTES / shared_bytes<A>(layout)));
    int start = 0;
    for (int level = 0; level < size.levels; ++level) {
        layout.height[level] = int(size.shapes[2 * level]);
        layout.width[level] = int(size.shapes[2 * level + 1]);
        layout.start[level] = start;
        start += layout.height[level] * layout.width[level];
    }
    return layout;
}

template <int N>
using Constant = std::integral_constant<int, N>;

// Calls launch(configuration, layout, WIDTH, CHUNKS), the last two as types, with the widest loads that fit.
template <class T, class Launch>
const char* dispatch(const Sizes& size, cudaStream_t stream, bool aligned, Launch launch) {
    using A = typename Arithmetic<T>::type;
    constexpr int WIDE = 16 / sizeof(T), MAX_CHUNKS = (MAX_CHANNELS + 32 * WIDE - 1) / (32 * WIDE);
    if (size.levels > MAX_LEVELS || size.channels > MAX_CHANNELS) return "too many levels or channels";
    const bool wide = aligned && size.channels % WIDE == 0;
    int chunks;
    const Layout layout = lay_out<A>(size, wide ? WIDE : 1, &chunks);
    const int64_t tiles = (size.queries + layout.block_queries - 1) / layout.block_queries;
    const int64_t blocks = size.batch * size.heads * tiles;
    if (blocks > INT32_MAX) return "too many queries";
    cudaLaunchConfig_t configuration = {};
    configuration.gridDim = dim3(unsigned(blocks));
    configuration.blockDim = dim3(THREADS);
    configuration.dynamicSmemBytes = shared_bytes<A>(layout) * layout.points_at_once;
    configuration.stream = stream;
    const cudaError_t error = !wide         ? launch(configuration, layout, Constant<1>(), Constant<MAX_CHANNELS / 32>())
                              : chunks == 1 ? launch(configuration, layout, Constant<WIDE>(), Constant<1>())
                                            : launch(configuration, layout, Constant<WIDE>(), Constant<MAX_CHUNKS>());
    if (error == cudaSuccess) return nullptr;
    cudaGetLastError();  // it is reported here, so clear it for later calls
    return cudaGetErrorString(error);
}

}  // namespace

// Functions that return a string return null on success, else the error; all run on the current device.
#define EXPORT extern "C" __attribute__((visibility("default")))

// The major version of CUDA that this library was built for.
EXPORT int dformer_cuda_major() { return CUDART_VERSION / 1000; }

// Whether this library has code for the current device.
EXPORT const char* dformer_cuda_check() {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, forward_kernel<float, float, 4, 1>);
    if (error != cudaSuccess) cudaGetLastError();  // it is reported here, so clear it for later calls
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

#define DFORMER_CUDA(T, suffix)                                                                                    \
    EXPORT const char* dformer_cuda_forward_##suffix(                                                              \
        const Sizes* size, cudaStream_t stream, const void* value, const void* locations, const void* weights,     \
        void* output) {                                                                                            \
        using A = Arithmetic<T>::type;                                                                             \
        const auto launch = [&](const cudaLaunchConfig_t& configuration, const Layout& layout, auto w, auto c) {   \
            return cudaLaunchKernelEx(                                                                             \
                &configuration, forward_kernel<T, A, w.value, c.value>, layout, (const T*)value,                   \
                (const A*)locations, (const A*)weights, (T*)output);                                               \
        };                                                                                                         \
        return dispatch<T>(*size, stream, aligned(value) && aligned(output), launch);                              \
    }                                                                                                              \
    EXPORT const char* dformer_cuda_backward_##suffix(                                                             \
        const Sizes* size, cudaStream_t stream, const void* grad_output, const void* value, const void* locations, \
        const void* weights, const void* scale, void* grad_value, void* grad_locations, void* grad_weights) {      \
        using A = Arithmetic<T>::type;                                                                             \
        const auto launch = [&](const cudaLaunchConfig_t& configuration, const Layout& layout, auto w, auto c) {   \
            return cudaLaunchKernelEx(                                                                             \
                &configuration, backward_kernel<T, A, w.value, c.value>, layout, (const T*)grad_output,            \
                (const T*)value, (const A*)locations, (const A*)weights, (const double*)scale, grad_value,         \
                (A*)grad_locations, (A*)grad_weights);                                                             \
        };                                                                                                         \
        return dispatch<T>(                                                                                        \
            *size, stream, aligned(grad_output) && aligned(value) && aligned(grad_value), launch);                 \
    }

DFORMER_CUDA(float, float32)
DFORMER_CUDA(double, float64)
DFORMER_CUDA(__half, float16)
DFORMER_CUDA(__nv_bfloat16, bfloat16)
