// The loops of pointwise, for one instruction set; see common/loops.h.

constexpr int64_t kBlock = 48;  // rows that are read at once: whole products of every panel

// Products of R rows of one panel, V vectors wide, at output `first`; only `count` of the rows are written.
template <int R, int V, typename X, typename Number>
void finish_rows(const Pointwise& job, const typename Number::Part* from, const Number* weights, int64_t row,
                 int64_t first, int64_t count) {
    constexpr int64_t kParts = sizeof(Number) / sizeof(typename Number::Part);
    const int64_t depth = job.depth / kParts, real = job.out.size[1];
    float sums[R * V * kLanes];
    multiply<R, V>(reinterpret_cast<const Number*>(from), depth, weights, depth, sums);
    for (int64_t r = 0; r < count; ++r) {
        X* const to = static_cast<X*>(job.out.data) + (row + r) * job.out.stride[0];
        const X* const add = static_cast<const X*>(job.residual.data) + (row + r) * job.residual.stride[0];
        for (int v = 0; v < V; ++v) {
            const int64_t c = first + v * kLanes;
            Lanes result = load_lanes(sums + (r * V + v) * kLanes) + load_lanes(job.bias + c);
            if (job.residual) result = result + widen_some(add + c, real - c);
            narrow_some(result, to + c, real - c);
        }
    }
}

template <int V, typename X, typename Number>
void multiply_rows(const Pointwise& job, const typename Number::Part* from, const Number* weights, int64_t row,
                   int64_t first, int64_t count) {
    constexpr int kRows = rows_of(V);
    if (count == 1) return finish_rows<1, V, X>(job, from, weights, row, first, 1);
    for (int64_t r = 0; r < count; r += kRows) {
        const int64_t here = count - r < kRows ? count - r : kRows;
        finish_rows<kRows, V, X>(job, from + r * job.depth, weights, row + r, first, here);
    }
}

// One row; fills up its last vector with zeros, which the next one's channels may overwrite.
template <typename X, typename Part>
SF_INLINE void read_row(const View& x, int64_t row, Part* to) {
    const X* const from = static_cast<const X*>(x.data) + row * x.stride[0];
    for (int64_t c = 0; c < x.size[1]; c += kLanes) narrow_lanes(widen_some(from + c, x.size[1] - c), to + c);
}

template <typename X, typename Number>
void run_as(const Pointwise& job, int64_t begin, int64_t end) {
    using Part = typename Number::Part;
    const int64_t depth = job.depth / static_cast<int64_t>(sizeof(Number) / sizeof(Part));
    auto* const from = reinterpret_cast<Part*>(thread_scratch((kBlock * job.depth + kLanes) * sizeof(Part)));
    for (int64_t row = begin; row < end; row += kBlock) {
        const int64_t count = end - row < kBlock ? end - row : kBlock;
        for (int64_t r = 0; r < count; ++r) {
            read_row<X>(job.x, row + r, from + r * job.depth);
            if (job.other) read_row<X>(job.other, row + r, from + r * job.depth + job.x.size[1]);
        }
        each_panel(job.width / kLanes, [&](auto vectors, int64_t first) {
            const auto* const weights = reinterpret_cast<const Number*>(job.weights) + depth * first;
            multiply_rows<vectors(), X>(job, from, weights, row, first, count);
        });
    }
}

template <typename Number>
void run(const Pointwise& job, int64_t begin, int64_t end) {
    if (job.x.dtype == DType::kBFloat16) {
        run_as<BFloat16, Number>(job, begin, end);
    } else {
        run_as<float, Number>(job, begin, end);
    }
}

constexpr Loops kLoops[] = {{run<Single>, kLanes}, {run<Short>, kLanes}};
