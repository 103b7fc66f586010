// What the CPU kernels share, whatever the instruction set they are compiled for.
//
// Shapes: B batch, L levels of h_l x w_l cells, S cells in all, Q queries, M heads, D channels per head, P points.
// All arrays are contiguous:
//   value, grad_value            (B, S, M, D)
//   locations, grad_locations    (B, Q, M, L, P, 2), x and y
//   weights, grad_weights        (B, Q, M, L, P)
//   output, grad_output          (B, Q, M, D)
// T is the type of value and output; A is the type of all else and of the sums: double for double, else float.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "types.h"

struct bfloat16 {
    uint16_t bits;
};

template <class T>
struct Forward {
    using A = typename Arithmetic<T>::type;
    Sizes size;
    const T* value;
    const A* locations;
    const A* weights;
    T* output;
};

template <class T>
struct Backward {
    using A = typename Arithmetic<T>::type;
    Sizes size;
    const T* grad_output;
    const T* value;
    const A* locations;
    const A* weights;
    A* grad_value;
    A* grad_locations;
    A* grad_weights;
};

// The four cells around each of n points, and how much each counts.
// Corners are numbered 0 to 3: upper left, upper right, lower left, lower right; [c * n + i] is corner c of point i.
template <class A>
struct Corners {
    int64_t n;
    std::vector<A> width, height;  // of the level of point i
    std::vector<int32_t> start;    // its first cell
    std::vector<int32_t> cell;     // -1: outside of the level
    std::vector<A> right, down;    // where in the square of the four: 0 to 1
    std::vector<A> weight;         // attention weight x bilinear weight
    std::vector<A> dot;            // <grad_output, value at the corner>
    std::vector<A> gradient;       // grad_output of one head

    Corners(int64_t n, int64_t channels)
        : n(n), width(n), height(n), start(n), cell(4 * n), right(n), down(n), weight(4 * n), dot(4 * n),
          gradient(channels) {}

    void set_level(int64_t i, const Sizes& size, int64_t level) {
        int64_t first = 0;
        for (int64_t l = 0; l < level; ++l) first += size.shapes[2 * l] * size.shapes[2 * l + 1];
        height[i] = A(size.shapes[2 * level]);
        width[i] = A(size.shapes[2 * level + 1]);
        start[i] = int32_t(first);
    }
};
