// Multi-scale deformable attention on the CPU (see ../reference.py for the definition).
//
// Plain functions on plain arrays: neither Python nor PyTorch is included or linked to, so a build outlives both.
// Kernels are compiled for several instruction sets, and the best that the running CPU has is used.

#include "cpu.h"

#include <algorithm>

#if defined(__x86_64__)
#define NAMESPACE avx512
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")))
#define REGISTER 64
#include "cpu_kernels.h"
#define NAMESPACE avx2
#define TARGET __attribute__((target("avx2,fma")))
#define REGISTER 32
#include "cpu_kernels.h"
#endif
#define NAMESPACE baseline
#define TARGET
#define REGISTER 16
#include "cpu_kernels.h"

namespace {

template <class T>
struct Kernels {
    using A = typename Arithmetic<T>::type;
    void (*forward)(const Forward<T>&, int64_t, int64_t, Corners<A>&);
    void (*backward_points)(const Backward<T>&, int64_t, int64_t, Corners<A>&);
    void (*backward_value)(const Backward<T>&, int64_t, int64_t, int64_t, Corners<A>&);
};

enum class Isa { baseline, avx2, avx512 };

Isa detect() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (avx2) return avx512 ? Isa::avx512 : Isa::avx2;
#endif
    return Isa::baseline;
}

Isa isa = detect();

template <class T>
Kernels<T> kernels() {
#if defined(__x86_64__)
    if (isa == Isa::avx512) return {avx512::forward<T>, avx512::backward_points<T>, avx512::backward_value<T>};
    if (isa == Isa::avx2) return {avx2::forward<T>, avx2::backward_points<T>, avx2::backward_value<T>};
#endif
    return {baseline::forward<T>, baseline::backward_points<T>, baseline::backward_value<T>};
}

constexpr int64_t QUERIES_A_TASK = 64;

template <class A>
Corners<A> points_of_a_query(const Sizes& size) {
    const int64_t a_head = size.levels * size.points;
    Corners<A> corners(size.heads * a_head, size.channels);
    for (int64_t i = 0; i < corners.n; ++i) corners.set_level(i, size, i % a_head / size.points);
    return corners;
}

template <class T>
void forward(const Forward<T>& call, int threads) {
    const int64_t queries = call.size.batch * call.size.queries;
#pragma omp parallel num_threads(threads)
    {
        auto corners = points_of_a_query<typename Arithmetic<T>::type>(call.size);
#pragma omp for schedule(dynamic)
        for (int64_t q = 0; q < queries; q += QUERIES_A_TASK)
            kernels<T>().forward(call, q, std::min(q + QUERIES_A_TASK, queries), corners);
    }
}

template <class T>
void backward(const Backward<T>& call, int threads) {
    using A = typename Arithmetic<T>::type;
    const int64_t queries = call.size.batch * call.size.queries, levels = call.size.levels;
    const int64_t slices = call.size.batch * call.size.heads * levels;
#pragma omp parallel num_threads(threads)
    {
        auto corners = points_of_a_query<A>(call.size);
#pragma omp for schedule(dynamic) nowait
        for (int64_t q = 0; q < queries; q += QUERIES_A_TASK)
            kernels<T>().backward_points(call, q, std::min(q + QUERIES_A_TASK, queries), corners);
        Corners<A> of_level(QUERIES_A_TASK * call.size.points, call.size.channels);
#pragma omp for schedule(dynamic)
        for (int64_t slice = 0; slice < slices; ++slice) {
            const int64_t level = slice % levels, image_and_head = slice / levels;
            for (int64_t i = 0; i < of_level.n; ++i) of_level.set_level(i, call.size, level);
            kernels<T>().backward_value(
                call, image_and_head / call.size.heads, image_and_head % call.size.heads, level, of_level);
        }
    }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// The instruction set that is used here.
EXPORT const char* dformer_cpu_isa() {
    return isa == Isa::avx512 ? "AVX-512" : isa == Isa::avx2 ? "AVX2" : "baseline";
}

// Limits the instruction set, for tests: 0 baseline, 1 AVX2, 2 AVX-512.
EXPORT void dformer_cpu_limit_isa(int at_most) { isa = std::min(Isa(at_most), detect()); }

#define DFORMER_CPU(T, suffix)                                                                                     \
    EXPORT void dformer_cpu_forward_##suffix(                                                                      \
        const Sizes* size, int threads, const void* value, const void* locations, const void* weights,             \
        void* output) {                                                                                            \
        using A = Arithmetic<T>::type;                                                                             \
        forward<T>({*size, (const T*)value, (const A*)locations, (const A*)weights, (T*)output}, threads);         \
    }                                                                                                              \
    EXPORT void dformer_cpu_backward_##suffix(                                                                     \
        const Sizes* size, int threads, const void* grad_output, const void* value, const void* locations,         \
        const void* weights, void* grad_value, void* grad_locations, void* grad_weights) {                         \
        using A = Arithmetic<T>::type;                                                                             \
        backward<T>({*size, (const T*)grad_output, (const T*)value, (const A*)locations, (const A*)weights,        \
                     (A*)grad_value, (A*)grad_locations, (A*)grad_weights}, threads);                              \
    }

DFORMER_CPU(float, float32)
DFORMER_CPU(double, float64)
DFORMER_CPU(bfloat16, bfloat16)
