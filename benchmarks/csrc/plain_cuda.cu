// What dformer's CUDA kernels are measured against: multi-scale deformable attention with one thread a channel, the way
// that the Deformable DETR paper's implementation (Zhu et al. 2021) is built; written from that description.
// Each thread finds the four cells around each point for itself. Shapes and types as in dformer/ops/csrc/cuda.cu, for
// up to 256 channels, a power of two; gradients by value are summed in float.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

struct Sizes {
    const int64_t* shapes;  // (L, 2), h_l and w_l, here on the device
    int64_t batch, cells, heads, channels, queries, levels, points;
};

namespace {

template <class T>
__device__ float get(const T* at) {
    return float(*at);
}

struct Point {
    int64_t cell[4];  // -1: outside
    float share[4];
    float right, down;
};

__device__ Point locate(int64_t start, int h, int w, float location_x, float location_y) {
    const float x = location_x * w - 0.5f, y = location_y * h - 0.5f;
    const int left = int(floorf(x)), top = int(floorf(y));
    Point point;
    point.right = x - left;
    point.down = y - top;
    for (int c = 0; c < 4; ++c) {
        const int column = left + c % 2, row = top + c / 2;
        const bool inside = column >= 0 && column < w && row >= 0 && row < h;
        point.cell[c] = inside ? start + int64_t(row) * w + column : -1;
        point.share[c] = (c % 2 ? point.right : 1 - point.right) * (c / 2 ? point.down : 1 - point.down);
    }
    return point;
}

template <class T>
__global__ void forward_kernel(
    Sizes size, const T* value, const float* locations, const float* weights, T* output) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;  // (b, q, m, d)
    if (i >= size.batch * size.queries * size.heads * size.channels) return;
    const int64_t row = i / size.channels, d = i % size.channels, m = row % size.heads;
    const int64_t b = row / size.heads / size.queries, stride = size.heads * size.channels;
    const T* image = value + b * size.cells * stride + m * size.channels + d;
    float total = 0;
    int64_t start = 0, at = row * size.levels * size.points;
    for (int l = 0; l < size.levels; ++l) {
        const int h = int(size.shapes[2 * l]), w = int(size.shapes[2 * l + 1]);
        for (int p = 0; p < size.points; ++p, ++at) {
            const Point point = locate(start, h, w, locations[2 * at], locations[2 * at + 1]);
            for (int c = 0; c < 4; ++c)
                if (point.cell[c] >= 0) total += weights[at] * point.share[c] * get(image + point.cell[c] * stride);
        }
        start += int64_t(h) * w;
    }
    output[i] = T(total);
}

// A block is one (b, q, m), its threads the channels; they add up their parts of the other two gradients.
template <class T>
__global__ void backward_kernel(
    Sizes size, const T* grad_output, const T* value, const float* locations, const float* weights, float* grad_value,
    float* grad_locations, float* grad_weights) {
    __shared__ float part[3][256];
    const int64_t row = blockIdx.x, d = threadIdx.x, m = row % size.heads;
    const int64_t b = row / size.heads / size.queries, stride = size.heads * size.channels;
    const int64_t image = b * size.cells * stride + m * size.channels + d;
    const float gradient = get(grad_output + row * size.channels + d);
    int64_t start = 0, at = row * size.levels * size.points;
    for (int l = 0; l < size.levels; ++l) {
        const int h = int(size.shapes[2 * l]), w = int(size.shapes[2 * l + 1]);
        for (int p = 0; p < size.points; ++p, ++at) {
            const Point point = locate(start, h, w, locations[2 * at], locations[2 * at + 1]);
            float dot[4] = {};
            for (int c = 0; c < 4; ++c) {
                if (point.cell[c] < 0) continue;
                const int64_t cell = image + point.cell[c] * stride;
                dot[c] = gradient * get(value + cell);
                atomicAdd(grad_value + cell, weights[at] * point.share[c] * gradient);
            }
            const float down = point.down, right = point.right;
            part[0][d] = point.share[0] * dot[0] + point.share[1] * dot[1] + point.share[2] * dot[2] + point.share[3] * dot[3];
            part[1][d] = weights[at] * w * ((1 - down) * (dot[1] - dot[0]) + down * (dot[3] - dot[2]));
            part[2][d] = weights[at] * h * ((1 - right) * (dot[2] - dot[0]) + right * (dot[3] - dot[1]));
            __syncthreads();
            for (int other = blockDim.x / 2; other > 0; other /= 2) {
                if (d < other)
                    for (int k = 0; k < 3; ++k) part[k][d] += part[k][d + other];
                __syncthreads();
            }
            if (d == 0) {
                grad_weights[at] = part[0][0];
                grad_locations[2 * at] = part[1][0];
                grad_locations[2 * at + 1] = part[2][0];
            }
            __syncthreads();
        }
        start += int64_t(h) * w;
    }
}

cudaLaunchConfig_t configure(int64_t blocks, int64_t threads, cudaStream_t stream) {
    cudaLaunchConfig_t configuration = {};
    configuration.gridDim = dim3(unsigned(blocks));
    configuration.blockDim = dim3(unsigned(threads));
    configuration.stream = stream;
    return configuration;
}

}  // namespace

#define PLAIN(T, suffix)                                                                                           \
    extern "C" int plain_forward_##suffix(                                                                         \
        const Sizes* size, cudaStream_t stream, const T* value, const float* locations, const float* weights,      \
        T* output) {                                                                                               \
        const int64_t all = size->batch * size->queries * size->heads * size->channels;                            \
        const auto configuration = configure((all + 255) / 256, 256, stream);                                      \
        return cudaLaunchKernelEx(                                                                                 \
            &configuration, forward_kernel<T>, *size, value, locations, weights, output);                          \
    }                                                                                                              \
    extern "C" int plain_backward_##suffix(                                                                        \
        const Sizes* size, cudaStream_t stream, const T* grad_output, const T* value, const float* locations,      \
        const float* weights, float* grad_value, float* grad_locations, float* grad_weights) {                     \
        const auto configuration = configure(size->batch * size->queries * size->heads, size->channels, stream);   \
        return cudaLaunchKernelEx(                                                                                 \
            &configuration, backward_kernel<T>, *size, grad_output, value, locations, weights, grad_value,         \
            grad_locations, grad_weights);                                                                         \
    }

PLAIN(float, float32)
PLAIN(__half, float16)
PLAIN(__nv_bfloat16, bfloat16)
