// The loops of winograd, for one instruction set; see common/loops.h.

// The transforms of a line, three weights long: kTaps numbers in, and of as many products kOuts results. Elements are
// `step` apart in x and `out_step` in y.
template <int M>
struct Line;

// No kernel along this axis.
template <>
struct Line<0> {
    static constexpr int kOuts = 1, kTaps = 1;
    SF_INLINE static void in(const Lanes* x, Lanes* y, int, int) { y[0] = x[0]; }
    SF_INLINE static void out(const Lanes* x, Lanes* y, int, int) { y[0] = x[0]; }
};

// Points 0, 1, -1 and infinity.
template <>
struct Line<2> {
    static constexpr int kOuts = 2, kTaps = 4;
    SF_INLINE static void in(const Lanes* x, Lanes* y, int step, int out_step) {
        const Lanes a = x[0], b = x[step], c = x[2 * step], d = x[3 * step];
        y[0] = a - c;
        y[out_step] = b + c;
        y[2 * out_step] = c - b;
        y[3 * out_step] = d - b;
    }
    SF_INLINE static void out(const Lanes* x, Lanes* y, int step, int out_step) {
        const Lanes a = x[0], b = x[step], c = x[2 * step], d = x[3 * step];
        y[0] = a + b + c;
        y[out_step] = b - c + d;
    }
};

// Points 0, a, -a, b, -b and infinity, a² = 1/2 and b² = 2: of such points these lose the fewest digits, and half as
// many as 1 and 2 do.
template <>
struct Line<4> {
    static constexpr int kOuts = 4, kTaps = 6;
    static constexpr float kA = 0.70710678f, kB = 1.41421356f, kAA = 0.5f, kBB = 2.0f;
    SF_INLINE static void in(const Lanes* x, Lanes* y, int step, int out_step) {
        const Lanes x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step], x4 = x[4 * step], x5 = x[5 * step];
        const Lanes even_a = x4 - x2 * kBB, odd_a = (x3 - x1 * kBB) * kA;
        const Lanes even_b = x4 - x2 * kAA, odd_b = (x3 - x1 * kAA) * kB;
        y[0] = x0 * (kAA * kBB) - x2 * (kAA + kBB) + x4;
        y[out_step] = even_a + odd_a;
        y[2 * out_step] = even_a - odd_a;
        y[3 * out_step] = even_b + odd_b;
        y[4 * out_step] = even_b - odd_b;
        y[5 * out_step] = x1 * (kAA * kBB) - x3 * (kAA + kBB) + x5;
    }
    SF_INLINE static void out(const Lanes* x, Lanes* y, int step, int out_step) {
        const Lanes sum_a = x[step] + x[2 * step], apart_a = x[step] - x[2 * step];
        const Lanes sum_b = x[3 * step] + x[4 * step], apart_b = x[3 * step] - x[4 * step];
        y[0] = x[0] + sum_a + sum_b;
        y[out_step] = apart_a * kA + apart_b * kB;
        y[2 * out_step] = sum_a * kAA + sum_b * kBB;
        y[3 * out_step] = apart_a * (kA * kAA) + apart_b * (kB * kBB) + x[5 * step];
    }
};

// Where a tile's outputs begin.
struct Corner {
    int64_t item, at[3];
};

template <int MD, int MH, int MW>
SF_INLINE Corner corner(const Winograd& job, int64_t tile) {
    const int64_t x = tile % job.tiles[2], above = tile / job.tiles[2];
    const int64_t y = above % job.tiles[1], behind = above / job.tiles[1];
    return {behind / job.tiles[0], {behind % job.tiles[0] * Line<MD>::kOuts, y * MH, x * MW}};
}

// How far apart positions are in [position][tile][width]: the odd cache line keeps them out of each other's place in
// the first-level cache.
template <typename Part>
SF_INLINE int64_t position_step(const Winograd& job, int64_t width) {
    return (job.block + kTiles - 1) / kTiles * kTiles * width + static_cast<int64_t>(64 / sizeof(Part));
}

// One tile of inputs, to one tile of every position; `nothing` is zeros, which surround the grid.
template <int MD, int MH, int MW, typename X, typename Part>
void transform_in(const Winograd& job, int64_t tile, const X* nothing, Part* __restrict to) {
    constexpr int kDeep = Line<MD>::kTaps, kHigh = Line<MH>::kTaps, kWide = Line<MW>::kTaps, kPlane = kHigh * kWide;
    const Corner at = corner<MD, MH, MW>(job, tile);
    const auto* const source = static_cast<const X*>(job.x.data) + at.item * job.x.stride[0];
    const X* from[kDeep * kPlane];
    const auto place = [&](int axis, int64_t i) {
        const int64_t last = job.x.size[axis + 2] - 1;
        if (job.replicate) return std::min(std::max<int64_t>(i, 0), last) * job.x.stride[axis + 2];
        return i < 0 || i > last ? int64_t{-1} : i * job.x.stride[axis + 2];
    };
    int64_t across[kWide];
    for (int j = 0; j < kWide; ++j) across[j] = place(2, at.at[2] + j - 1);
    for (int d = 0; d < kDeep; ++d) {
        const int64_t behind = MD == 0 ? 0 : place(0, job.first + at.at[0] + d - 1);
        for (int i = 0; i < kHigh; ++i) {
            const int64_t below = place(1, at.at[1] + i - 1);
            for (int j = 0; j < kWide; ++j) {
                const bool outside = behind < 0 || below < 0 || across[j] < 0;
                from[(d * kHigh + i) * kWide + j] = outside ? nullptr : source + behind + below + across[j];
            }
        }
    }
    for (const X*& pixel : from) pixel = pixel == nullptr ? nothing : pixel;
    const int64_t step = position_step<Part>(job, job.inputs), real = job.x.size[1];
    for (int64_t c = 0; c < job.inputs; c += kLanes) {
        Lanes planes[kDeep][kPlane];
        for (int d = 0; d < kDeep; ++d) {
            Lanes rows[kPlane];
            SF_UNROLL for (int i = 0; i < kHigh; ++i) {
                Lanes row[kWide];
                SF_UNROLL for (int j = 0; j < kWide; ++j) {
                    row[j] = widen_some(from[(d * kHigh + i) * kWide + j] + c, real - c);
                }
                Line<MW>::in(row, rows + i * kWide, 1, 1);
            }
            SF_UNROLL for (int j = 0; j < kWide; ++j) {
                Lanes column[kHigh];
                Line<MH>::in(rows + j, column, kWide, 1);
                SF_UNROLL for (int i = 0; i < kHigh; ++i) {
                    const int p = i * kWide + j;
                    if constexpr (MD == 0) narrow_lanes(column[i], to + p * step + c);
                    else planes[d][p] = column[i];
                }
            }
        }
        if constexpr (MD != 0) {
            for (int p = 0; p < kPlane; ++p) {
                Lanes line[kDeep];
                Line<MD>::in(&planes[0][p], line, kPlane, 1);
                SF_UNROLL for (int d = 0; d < kDeep; ++d) narrow_lanes(line[d], to + (d * kPlane + p) * step + c);
            }
        }
    }
}

// The sums of one panel to outputs [first, first + width) of one tile; what is beyond the edge goes to `nowhere`.
template <int MD, int MH, int MW, bool kAdd, typename X>
void transform_out(const Winograd& job, int64_t tile, const float* sums, int64_t step, int64_t first, int64_t width,
                   X* nowhere) {
    constexpr int kDeep = Line<MD>::kTaps, kHigh = Line<MH>::kTaps, kWide = Line<MW>::kTaps, kPlane = kHigh * kWide;
    constexpr int kDepth = Line<MD>::kOuts;
    const Corner at = corner<MD, MH, MW>(job, tile);
    const int64_t real = job.out.size[1] - first;
    X* to[kDepth][MH * MW];
    const X* add[kDepth][MH * MW];
    const auto start = [&](const View& view) {
        int64_t offset = at.item * view.stride[0] + first;
        for (int axis = 0; axis < 3; ++axis) offset += at.at[axis] * view.stride[axis + 2];
        return static_cast<X*>(view.data) + offset;
    };
    X* const out = start(job.out);
    const X* const residual = kAdd ? start(job.residual) : nullptr;
    const auto inside = [&](int axis, int i) { return at.at[axis] + i < job.out.size[axis + 2]; };
    for (int d = 0; d < kDepth; ++d) {
        for (int i = 0; i < MH; ++i) {
            for (int j = 0; j < MW; ++j) {
                const bool here = inside(0, d) && inside(1, i) && inside(2, j);
                const auto place = [&](const View& view) {
                    return d * view.stride[2] + i * view.stride[3] + j * view.stride[4];
                };
                to[d][i * MW + j] = here ? out + place(job.out) : nowhere;
                if (kAdd) add[d][i * MW + j] = here ? residual + place(job.residual) : nowhere;
            }
        }
    }
    for (int64_t c = 0; c < width; c += kLanes) {
        Lanes planes[kDepth][kPlane];
        if constexpr (MD != 0) {
            for (int p = 0; p < kPlane; ++p) {
                Lanes line[kDeep];
                SF_UNROLL for (int d = 0; d < kDeep; ++d) line[d] = load_lanes(sums + (d * kPlane + p) * step + c);
                Line<MD>::out(line, &planes[0][p], 1, kPlane);
            }
        }
        const Lanes bias = load_lanes(job.bias + first + c);
        for (int d = 0; d < kDepth; ++d) {
            Lanes rows[MH * kWide];
            SF_UNROLL for (int j = 0; j < kWide; ++j) {
                Lanes column[kHigh];
                SF_UNROLL for (int i = 0; i < kHigh; ++i) {
                    const int p = i * kWide + j;
                    if constexpr (MD == 0) column[i] = load_lanes(sums + p * step + c);
                    else column[i] = planes[d][p];
                }
                Line<MH>::out(column, rows + j, 1, kWide);
            }
            SF_UNROLL for (int i = 0; i < MH; ++i) {
                Lanes results[MW];
                Line<MW>::out(rows + i * kWide, results, 1, 1);
                SF_UNROLL for (int j = 0; j < MW; ++j) {
                    Lanes result = results[j] + bias;
                    if constexpr (kAdd) result = result + widen_some(add[d][i * MW + j] + c, real - c);
                    narrow_some(result, to[d][i * MW + j] + c, real - c);
                }
            }
        }
    }
}

// Products of one panel, V vectors wide, at every position.
template <int V, typename Number>
void multiply_panel(const Winograd& job, int64_t tiles, const typename Number::Part* from, const Number* weights,
                    float* sums) {
    constexpr int kRows = rows_of(V);
    constexpr int64_t kParts = sizeof(Number) / sizeof(typename Number::Part);
    const int64_t depth = job.inputs / kParts, step = position_step<typename Number::Part>(job, job.inputs);
    const int64_t out_step = position_step<float>(job, V * kLanes);
    for (int64_t p = 0; p < job.positions(); ++p) {
        for (int64_t t = 0; t < tiles; t += kRows) {
            multiply<kRows, V>(reinterpret_cast<const Number*>(from + p * step + t * job.inputs), depth,
                               weights + p * depth * V * kLanes, depth, sums + p * out_step + t * V * kLanes);
        }
    }
}

// A block of tiles at a time, in memory that stays in the second-level cache: transform, multiply by a panel of the
// weights at every position, transform back.
template <int MD, int MH, int MW, typename X, typename Number>
void run_as(const Winograd& job, int64_t begin, int64_t end) {
    using Part = typename Number::Part;
    constexpr int64_t kParts = sizeof(Number) / sizeof(Part);
    const int64_t positions = job.positions(), depth = job.inputs / kParts;
    const int64_t in_bytes = positions * position_step<Part>(job, job.inputs) * sizeof(Part);
    const int64_t out_bytes = positions * position_step<float>(job, kMost * kLanes) * sizeof(float);
    const int64_t channels = std::max(job.inputs, job.outputs);
    char* const scratch = thread_scratch(in_bytes + out_bytes + 2 * channels * sizeof(X));
    auto* const from = reinterpret_cast<Part*>(scratch);
    auto* const sums = reinterpret_cast<float*>(scratch + in_bytes);
    auto* const nothing = reinterpret_cast<X*>(scratch + in_bytes + out_bytes);
    X* const nowhere = nothing + channels;
    std::memset(static_cast<void*>(nothing), 0, 2 * channels * sizeof(X));
    const auto finish = job.residual ? transform_out<MD, MH, MW, true, X> : transform_out<MD, MH, MW, false, X>;
    for (; begin < end; begin += job.block) {
        const int64_t tiles = std::min(job.block, end - begin);
        for (int64_t t = 0; t < tiles; ++t) {
            transform_in<MD, MH, MW, X>(job, begin + t, nothing, from + t * job.inputs);
        }
        each_panel(job.outputs / kLanes, [&](auto vectors, int64_t first) {
            constexpr int64_t kWidth = vectors() * kLanes;
            const auto* const weights = reinterpret_cast<const Number*>(job.weights) + positions * depth * first;
            multiply_panel<vectors()>(job, tiles, from, weights, sums);
            const int64_t step = position_step<float>(job, kWidth);
            for (int64_t t = 0; t < tiles; ++t) finish(job, begin + t, sums + t * kWidth, step, first, kWidth, nowhere);
        });
    }
}

template <typename X, typename Number>
void run_tiles(const Winograd& job, int64_t begin, int64_t end) {
    if (job.deep == 4) return run_as<4, 4, 4, X, Number>(job, begin, end);
    if (job.deep == 2) {
        return job.wide == 4 ? run_as<2, 4, 4, X, Number>(job, begin, end) : run_as<2, 2, 2, X, Number>(job, begin, end);
    }
    if (job.high == 4) return run_as<0, 4, 4, X, Number>(job, begin, end);
    job.wide == 4 ? run_as<0, 2, 4, X, Number>(job, begin, end) : run_as<0, 2, 2, X, Number>(job, begin, end);
}

template <typename Number>
void run(const Winograd& job, int64_t begin, int64_t end) {
    if (job.x.dtype == DType::kBFloat16) {
        run_tiles<BFloat16, Number>(job, begin, end);
    } else {
        run_tiles<float, Number>(job, begin, end);
    }
}

constexpr Loops kLoops[] = {{run<Single>, kLanes, kMost}, {run<Short>, kLanes, kMost}};
