// The CPU kernels for one instruction set. Included once for each, with
//   NAMESPACE  its name,
//   TARGET     the attribute that lets a function use it,
//   REGISTER   bytes in a vector register.
// Vectors are written out (GCC's and Clang's vector extension): one register holds adjacent channels of a cell.

namespace NAMESPACE {

template <class A, int BYTES>
struct Vector {
    typedef A type __attribute__((vector_size(BYTES)));
    static constexpr int lanes = BYTES / int(sizeof(A));
};

template <class V, class A>
TARGET inline V load(const A* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
TARGET inline V load(const bfloat16* from) {  // the upper half of a float
    constexpr int bytes = sizeof(V);
    typename Vector<uint16_t, bytes / 2>::type half;
    std::memcpy(&half, from, sizeof half);
    return V(__builtin_convertvector(half, typename Vector<uint32_t, bytes>::type) << 16);
}

template <class V, class A>
TARGET inline void store(A* to, const V& v) {
    std::memcpy(to, &v, sizeof v);
}

template <class V>
TARGET inline void store(bfloat16* to, const V& v) {
    for (unsigned i = 0; i < sizeof(V) / sizeof(float); ++i) {
        float x = v[i];
        uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        bits += 0x7fff + (bits >> 16 & 1);  // to the nearest, ties to even
        to[i].bits = x == x ? uint16_t(bits >> 16) : 0x7fc0;
    }
}

template <class A, int BYTES>
TARGET inline A sum(const typename Vector<A, BYTES>::type& v) {
    if constexpr (BYTES == sizeof(A)) {
        return v[0];
    } else {
        typename Vector<A, BYTES / 2>::type half[2];
        std::memcpy(half, &v, sizeof v);
        return sum<A, BYTES / 2>(half[0] + half[1]);
    }
}

// Fills cell, right, down and weight of points at `locations`. NaN counts as outside.
template <class A>
TARGET inline void locate(Corners<A>& corners, const A* __restrict locations, const A* __restrict weights) {
    const int64_t n = corners.n;
    const A* __restrict width = corners.width.data();
    const A* __restrict height = corners.height.data();
    const int32_t* __restrict start = corners.start.data();
    int32_t* __restrict cell = corners.cell.data();
    A* __restrict right = corners.right.data();
    A* __restrict down = corners.down.data();
    A* __restrict weight = corners.weight.data();
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        A x = locations[2 * i] * width[i] - A(0.5), y = locations[2 * i + 1] * height[i] - A(0.5);
        x = x > -2 ? x : A(-2);
        y = y > -2 ? y : A(-2);
        x = x < width[i] + 1 ? x : width[i] + 1;
        y = y < height[i] + 1 ? y : height[i] + 1;
        int32_t left = int32_t(x), top = int32_t(y);
        left -= A(left) > x;  // floor
        top -= A(top) > y;
        const A fx = x - A(left), fy = y - A(top);
        const int32_t w = int32_t(width[i]), h = int32_t(height[i]);
        const int32_t first = start[i] + top * w + left;
        const bool in_left = left >= 0 && left < w, in_right = left >= -1 && left < w - 1;
        const bool in_top = top >= 0 && top < h, in_bottom = top >= -1 && top < h - 1;
        cell[i] = in_top & in_left ? first : -1;
        cell[n + i] = in_top & in_right ? first + 1 : -1;
        cell[2 * n + i] = in_bottom & in_left ? first + w : -1;
        cell[3 * n + i] = in_bottom & in_right ? first + w + 1 : -1;
        right[i] = fx;
        down[i] = fy;
        weight[i] = weights[i] * (1 - fx) * (1 - fy);
        weight[n + i] = weights[i] * fx * (1 - fy);
        weight[2 * n + i] = weights[i] * (1 - fx) * fy;
        weight[3 * n + i] = weights[i] * fx * fy;
    }
}

// Each of the three below handles K vectors of channels, from the pointers on, for points [from, to).

template <class T, int BYTES, int K>
TARGET inline void gather(
    const Corners<typename Arithmetic<T>::type>& corners, int64_t from, int64_t to, const T* value, int64_t stride,
    T* output) {
    using A = typename Arithmetic<T>::type;
    using V = typename Vector<A, BYTES>::type;
    constexpr int lanes = Vector<A, BYTES>::lanes;
    V total[K] = {};
    for (int64_t i = from; i < to; ++i)
        for (int64_t c = i; c < 4 * corners.n; c += corners.n) {
            if (corners.cell[c] < 0) continue;
            const T* at = value + corners.cell[c] * stride;
            for (int k = 0; k < K; ++k) total[k] += corners.weight[c] * load<V>(at + k * lanes);
        }
    for (int k = 0; k < K; ++k) store(output + k * lanes, total[k]);
}

template <class T, int BYTES, int K>
TARGET inline void multiply(
    Corners<typename Arithmetic<T>::type>& corners, int64_t from, int64_t to, const T* value, int64_t stride,
    const T* grad_output) {
    using A = typename Arithmetic<T>::type;
    using V = typename Vector<A, BYTES>::type;
    constexpr int lanes = Vector<A, BYTES>::lanes;
    V gradient[K];
    for (int k = 0; k < K; ++k) gradient[k] = load<V>(grad_output + k * lanes);
    for (int64_t i = from; i < to; ++i)
        for (int64_t c = i; c < 4 * corners.n; c += corners.n) {
            if (corners.cell[c] < 0) continue;
            const T* at = value + corners.cell[c] * stride;
            V product = {};
            for (int k = 0; k < K; ++k) product += gradient[k] * load<V>(at + k * lanes);
            corners.dot[c] += sum<A, BYTES>(product);
        }
}

template <class T, int BYTES, int K>
TARGET inline void scatter(
    const Corners<typename Arithmetic<T>::type>& corners, int64_t from, int64_t to,
    typename Arithmetic<T>::type* grad_value, int64_t stride, const T* grad_output) {
    using A = typename Arithmetic<T>::type;
    using V = typename Vector<A, BYTES>::type;
    constexpr int lanes = Vector<A, BYTES>::lanes;
    V gradient[K];
    for (int k = 0; k < K; ++k) gradient[k] = load<V>(grad_output + k * lanes);
    for (int64_t i = from; i < to; ++i)
        for (int64_t c = i; c < 4 * corners.n; c += corners.n) {
            if (corners.cell[c] < 0) continue;
            A* at = grad_value + corners.cell[c] * stride;
            for (int k = 0; k < K; ++k)
                store(at + k * lanes, load<V>(at + k * lanes) + corners.weight[c] * gradient[k]);
        }
}

// Calls one of the three for all D channels: 128 bytes at a time, then a register, 16 bytes, a number.
#define FOR_ALL_CHANNELS(function, from, to, at, stride, other)                                                \
    for (int64_t d = 0; d < D;) {                                                                              \
        const int64_t left = (D - d) * int64_t(sizeof(A));                                                     \
        if (left >= 128) {                                                                                     \
            function<T, REGISTER, 128 / REGISTER>(corners, from, to, (at) + d, stride, (other) + d);           \
            d += 128 / sizeof(A);                                                                              \
        } else if (left >= REGISTER) {                                                                         \
            function<T, REGISTER, 1>(corners, from, to, (at) + d, stride, (other) + d);                        \
            d += REGISTER / sizeof(A);                                                                         \
        } else if (left >= 16) {                                                                               \
            function<T, 16, 1>(corners, from, to, (at) + d, stride, (other) + d);                              \
            d += 16 / sizeof(A);                                                                               \
        } else {                                                                                               \
            function<T, sizeof(A), 1>(corners, from, to, (at) + d, stride, (other) + d);                       \
            d += 1;                                                                                            \
        }                                                                                                      \
    }

// Output of queries [begin, end) of the B * Q. `corners` has room for the M * L * P points of a query.
template <class T>
TARGET void forward(const Forward<T>& call, int64_t begin, int64_t end, Corners<typename Arithmetic<T>::type>& corners) {
    using A = typename Arithmetic<T>::type;
    const int64_t M = call.size.heads, D = call.size.channels, n = corners.n, points = n / M;
    for (int64_t q = begin; q < end; ++q) {
        locate(corners, call.locations + 2 * n * q, call.weights + n * q);
        const T* image = call.value + q / call.size.queries * call.size.cells * M * D;
        for (int64_t m = 0; m < M; ++m)
            FOR_ALL_CHANNELS(gather, m * points, (m + 1) * points, image + m * D, M * D, call.output + (q * M + m) * D)
    }
}

// Gradients by location and weight, of queries [begin, end) of the B * Q.
template <class T>
TARGET void backward_points(
    const Backward<T>& call, int64_t begin, int64_t end, Corners<typename Arithmetic<T>::type>& corners) {
    using A = typename Arithmetic<T>::type;
    const int64_t M = call.size.heads, D = call.size.channels, n = corners.n, points = n / M;
    for (int64_t q = begin; q < end; ++q) {
        locate(corners, call.locations + 2 * n * q, call.weights + n * q);
        const T* image = call.value + q / call.size.queries * call.size.cells * M * D;
        A* __restrict dot = corners.dot.data();
        for (int64_t i = 0; i < 4 * n; ++i) dot[i] = 0;
        for (int64_t m = 0; m < M; ++m)
            FOR_ALL_CHANNELS(
                multiply, m * points, (m + 1) * points, image + m * D, M * D, call.grad_output + (q * M + m) * D)
        const A* __restrict weights = call.weights + n * q;
        A* __restrict grad_weights = call.grad_weights + n * q;
        A* __restrict grad_locations = call.grad_locations + 2 * n * q;
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
            const A fx = corners.right[i], fy = corners.down[i];
            const A d0 = dot[i], d1 = dot[n + i], d2 = dot[2 * n + i], d3 = dot[3 * n + i];
            grad_weights[i] = (1 - fy) * ((1 - fx) * d0 + fx * d1) + fy * ((1 - fx) * d2 + fx * d3);
            grad_locations[2 * i] = weights[i] * corners.width[i] * ((1 - fy) * (d1 - d0) + fy * (d3 - d2));
            grad_locations[2 * i + 1] = weights[i] * corners.height[i] * ((1 - fx) * (d2 - d0) + fx * (d3 - d1));
        }
    }
}

// Gradient by value of one image, head and level, which no other thread writes to: no race, and always the same order.
// `corners` has room for the points of that level of some queries.
template <class T>
TARGET void backward_value(
    const Backward<T>& call, int64_t b, int64_t m, int64_t level, Corners<typename Arithmetic<T>::type>& corners) {
    using A = typename Arithmetic<T>::type;
    const int64_t M = call.size.heads, D = call.size.channels, Q = call.size.queries, P = call.size.points;
    const int64_t together = corners.n / P;
    std::vector<A> locations(2 * corners.n), weights(corners.n);
    A* image = call.grad_value + (b * call.size.cells * M + m) * D;
    for (int64_t first = 0; first < Q; first += together) {
        const int64_t count = Q - first < together ? Q - first : together;
        for (int64_t j = 0; j < count; ++j) {
            const int64_t at = (((b * Q + first + j) * M + m) * call.size.levels + level) * P;
            for (int64_t i = 0; i < 2 * P; ++i) locations[2 * P * j + i] = call.locations[2 * at + i];
            for (int64_t i = 0; i < P; ++i) weights[P * j + i] = call.weights[at + i];
        }
        locate(corners, locations.data(), weights.data());  // the last `count` may be fewer: the rest is not used
        for (int64_t j = 0; j < count; ++j)
            FOR_ALL_CHANNELS(
                scatter, j * P, (j + 1) * P, image, M * D, call.grad_output + ((b * Q + first + j) * M + m) * D)
    }
}

#undef FOR_ALL_CHANNELS

}  // namespace NAMESPACE

#undef NAMESPACE
#undef TARGET
#undef REGISTER
