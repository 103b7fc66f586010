// What the CPU and the CUDA kernels share.

#pragma once

#include <cstdint>

// The type of sums of values of type T.
template <class T>
struct Arithmetic {
    using type = float;
};
template <>
struct Arithmetic<double> {
    using type = double;
};

struct Sizes {
    const int64_t* shapes;  // (L, 2), h_l and w_l, on the host
    int64_t batch, cells, heads, channels, queries, levels, points;
};
