// The loops of ensemble_features, for one instruction set; see common/loops.h.

constexpr int kRows = kLanes == 16 ? 8 : 6;  // rows of a register tile
constexpr int kGroup = 4 * kRows;            // inputs whose weight gradient is made at a time

inline int64_t padded(int64_t columns) { return (columns + kLanes - 1) / kLanes * kLanes; }

// Columns of a panel: as many vectors as fit with kRows rows; three where there are enough and none is left over.
inline int64_t panel_width(int64_t columns) {
    return kLanes == 16 ? (columns % (3 * kLanes) == 0 ? 3 : 2) * kLanes : kMost * kLanes;
}

// All columns of kRows rows, added to the sums. panels: for each panel's columns [length, width], of which rows
// [from, from + depth). a's rows are kDepth apart; kTurned, it is [depth, kGroup] and its columns are the rows.
template <bool kTurned, typename Number>
void multiply_rows(const Number* a, const Number* panels, int64_t length, int64_t from, int64_t depth, float* sums,
                   int64_t columns) {
    constexpr std::integral_constant<int64_t, kTurned ? 1 : kDepth> row;
    constexpr int kStep = kTurned ? kGroup : 1;
    const int64_t panel = panel_width(columns);
    for (int64_t column = 0; column < columns; column += panel) {
        const int64_t width = std::min(panel, columns - column);
        const Number* part = panels + column * length + from * width;
        switch (width / kLanes) {
            case 1: multiply<kRows, 1, true, kStep>(a, row, part, depth, sums + column, columns); break;
            case 2: multiply<kRows, 2, true, kStep>(a, row, part, depth, sums + column, columns); break;
            default:
                if constexpr (kLanes == 16) multiply<kRows, 3, true, kStep>(a, row, part, depth, sums + column, columns);
        }
    }
}

// Copies `count` elements, `stride` apart and `step` apart, as another type.
template <typename To, typename From>
SF_INLINE void convert(const From* __restrict source, int64_t stride, int64_t count, To* __restrict target,
                       int64_t step = 1) {
    const auto one = [](From value) {
        if constexpr (std::is_same_v<To, From>) {
            return value;
        } else {
            return from_float<To>(to_float(value));
        }
    };
    if (stride == 1 && step == 1) {
        for (int64_t i = 0; i < count; ++i) target[i] = one(source[i]);
    } else {
        for (int64_t i = 0; i < count; ++i) target[i * step] = one(source[i * stride]);
    }
}

// Writes a row's outputs, `stride` apart, from `column` on as row k of their panel of `length` rows; a Number holds one
// or two rows.
template <typename Number, typename From>
void pack_row(const Slab& slab, const From* row, int64_t stride, int64_t column, int64_t k, int64_t length,
              Number* panels) {
    using Part = typename Number::Part;
    constexpr int64_t kParts = sizeof(Number) / sizeof(Part);
    const int64_t columns = padded(slab.outputs), panel = panel_width(columns);
    const int64_t at = column * length + k / kParts * std::min(panel, columns - column);
    convert(row + column * stride, stride, std::min(panel, slab.outputs - column),
            reinterpret_cast<Part*>(panels + at) + k % kParts, kParts);
}

// Inputs [input, input + depth) of `count` pixels of a slice, as rows `stride` apart.
template <typename To, typename From>
void copy_pixels(const Slab& slab, const From* slice, int64_t pixel, int64_t count, int64_t input, int64_t depth,
                 To* __restrict rows, int64_t stride) {
    const int64_t channel_stride = slab.features.stride[1];
    int64_t y = pixel / slab.width, x = pixel % slab.width;
    for (int64_t r = 0; r < count; ++r) {
        const From* source = slice + y * slab.features.stride[2] + x * slab.features.stride[3];
        convert(source + input * channel_stride, channel_stride, depth, rows + r * stride);
        if (++x == slab.width) x = 0, ++y;
    }
}

// total += sums [count, columns], from a pixel on.
template <typename T>
void add_sums(const Slab& slab, int64_t item, int64_t slice, int64_t pixel, int64_t count,
              const float* __restrict sums, int64_t columns) {
    T* total = static_cast<T*>(slab.total.data);
    const int64_t channel_stride = slab.total.stride[1];
    if (channel_stride == 1) {
        for (int64_t r = 0; r < count; ++r) {
            T* __restrict row = total + slab.total_at(item, slice, pixel + r);
            for (int64_t o = 0; o < slab.outputs; ++o) {
                row[o] = from_float<T>(to_float(row[o]) + sums[r * columns + o]);
            }
        }
        return;
    }
    int64_t places[kChunkRows];
    for (int64_t r = 0; r < count; ++r) places[r] = slab.total_at(item, slice, pixel + r);
    for (int64_t o = 0; o < slab.outputs; ++o) {
        for (int64_t r = 0; r < count; ++r) {
            T& cell = total[places[r] + o * channel_stride];
            cell = from_float<T>(to_float(cell) + sums[r * columns + o]);
        }
    }
}

// The weight as panels of s I rows and O columns; a Number holds one or two rows.
template <typename Number>
Scratch<char> pack_weight(const Slab& slab) {
    using Part = typename Number::Part;
    constexpr int64_t kParts = sizeof(Number) / sizeof(Part);
    const int64_t length = slab.scale * slab.inputs, columns = padded(slab.outputs);
    const int64_t numbers = (length + kParts - 1) / kParts;
    Scratch<char> packed(numbers * columns * sizeof(Number));
    Number* panels = reinterpret_cast<Number*>(packed.get());
    const auto stride = slab.weight.stride;
    dispatch(slab.weight.dtype, [&](auto* as) {
        const auto* source = static_cast<decltype(as)>(slab.weight.data);
        for (int64_t column = 0; column < columns; column += panel_width(columns)) {
            for (int64_t k = 0; k < length; ++k) {
                const auto* row = source + k % slab.inputs * stride[1] + k / slab.inputs * stride[2];
                pack_row(slab, row, stride[0], column, k, numbers, panels);
            }
        }
    });
    return packed;
}

// Adds the chunks [begin, end) of kChunkRows pixels, all slices in a row, to the total.
template <typename T, typename Number>
void add_chunks(const Slab& slab, const Number* panels, int64_t begin, int64_t end) {
    using Part = typename Number::Part;
    constexpr int64_t kParts = sizeof(Number) / sizeof(Part);
    const int64_t columns = padded(slab.outputs), length = slab.scale * slab.inputs;
    const int64_t numbers = (length + kParts - 1) / kParts;
    const int64_t chunks = (slab.pixels + kChunkRows - 1) / kChunkRows;
    const T* features = static_cast<const T*>(slab.features.data);
    Scratch<float> sums(kChunkRows * columns);
    Scratch<Number> rows(kRows * kDepth);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t item = chunk / chunks / slab.coarse, slice = chunk / chunks % slab.coarse;
        const int64_t pixel = chunk % chunks * kChunkRows, count = std::min(kChunkRows, slab.pixels - pixel);
        std::fill_n(sums.get(), kChunkRows * columns, 0.0f);
        for (int64_t from = 0; from < numbers; from += kDepth) {
            const int64_t depth = std::min(kDepth, numbers - from), stop = std::min(length, (from + depth) * kParts);
            for (int64_t r = 0; r < count; r += kRows) {
                // A run of the summed axis may pass from one slice to the next.
                for (int64_t k = from * kParts; k < stop;) {
                    const int64_t jj = k / slab.inputs, input = k % slab.inputs;
                    const int64_t run = std::min(stop - k, slab.inputs - input);
                    copy_pixels(slab, features + slab.slice_at(item, slice, jj), pixel + r,
                                std::min<int64_t>(kRows, count - r), input, run,
                                reinterpret_cast<Part*>(rows.get()) + (k - from * kParts), kDepth * kParts);
                    k += run;
                }
                if (stop - from * kParts < depth * kParts) {
                    for (int64_t row = 0; row < kRows; ++row) {
                        reinterpret_cast<Part*>(rows.get() + row * kDepth)[stop - from * kParts] = Part();
                    }
                }
                multiply_rows<false>(rows.get(), panels, numbers, from, depth, sums.get() + r * columns, columns);
            }
        }
        dispatch(slab.total.dtype, [&](auto* as) {
            add_sums<std::remove_pointer_t<decltype(as)>>(slab, item, slice, pixel, count, sums.get(), columns);
        });
    }
}

template <typename Number>
void add_range(const Slab& slab, const char* panels, int64_t begin, int64_t end) {
    dispatch(slab.features.dtype, [&](auto* as) {
        using T = std::remove_pointer_t<decltype(as)>;
        add_chunks<T>(slab, reinterpret_cast<const Number*>(panels), begin, end);
    });
}

// The gradient's pixels [pixel, pixel + count) as panels of kChunkRows rows and O columns, in float32.
inline void pack_gradient(const Slab& slab, int64_t item, int64_t slice, int64_t pixel, int64_t count,
                          Single* panels) {
    const int64_t columns = padded(slab.outputs);
    dispatch(slab.total.dtype, [&](auto* as) {
        const auto* source = static_cast<decltype(as)>(slab.total.data);
        for (int64_t r = 0; r < count; ++r) {
            const auto* row = source + slab.total_at(item, slice, pixel + r);
            for (int64_t column = 0; column < columns; column += panel_width(columns)) {
                pack_row(slab, row, slab.total.stride[1], column, r, kChunkRows, panels);
            }
        }
    });
}

// The weight's gradient for groups [begin, end) of kGroup inputs of one jj: over all pixels, in float32 within a
// slice and float64 across slices, in an order that no number of threads changes.
template <typename T>
void backward_groups(const Slab& slab, int64_t begin, int64_t end) {
    const int64_t columns = padded(slab.outputs), groups = (slab.inputs + kGroup - 1) / kGroup;
    const T* features = static_cast<const T*>(slab.features.data);
    float* out = static_cast<float*>(slab.weight.data);
    const auto stride = slab.weight.stride;
    Scratch<float> sums(kGroup * columns);
    Scratch<Single> rows(kChunkRows * kGroup), panels(kChunkRows * columns);
    Scratch<double> whole(kGroup * columns);
    for (int64_t group = begin; group < end; ++group) {
        const int64_t jj = group / groups, input = group % groups * kGroup;
        const int64_t inputs = std::min<int64_t>(kGroup, slab.inputs - input);
        std::fill_n(whole.get(), kGroup * columns, 0.0);
        for (int64_t slice = 0; slice < slab.batch * slab.coarse; ++slice) {
            const int64_t item = slice / slab.coarse, place = slice % slab.coarse;
            std::fill_n(sums.get(), kGroup * columns, 0.0f);
            for (int64_t pixel = 0; pixel < slab.pixels; pixel += kChunkRows) {
                const int64_t count = std::min(kChunkRows, slab.pixels - pixel);
                pack_gradient(slab, item, place, pixel, count, panels.get());
                copy_pixels(slab, features + slab.slice_at(item, place, jj), pixel, count, input, inputs,
                            &rows.get()->value, kGroup);
                for (int64_t r = 0; r < inputs; r += kRows) {
                    multiply_rows<true>(rows.get() + r, panels.get(), kChunkRows, 0, count, sums.get() + r * columns,
                                        columns);
                }
            }
            for (int64_t cell = 0; cell < kGroup * columns; ++cell) whole.get()[cell] += sums.get()[cell];
        }
        for (int64_t r = 0; r < inputs; ++r) {
            for (int64_t o = 0; o < slab.outputs; ++o) {
                out[o * stride[0] + (input + r) * stride[1] + jj * stride[2]] =
                    static_cast<float>(whole.get()[r * columns + o]);
            }
        }
    }
}

inline void backward_range(const Slab& slab, int64_t begin, int64_t end) {
    dispatch(slab.features.dtype,
             [&](auto* as) { backward_groups<std::remove_pointer_t<decltype(as)>>(slab, begin, end); });
}

constexpr Loops kLoops[] = {{pack_weight<Single>, add_range<Single>, backward_range, kGroup},
                            {pack_weight<Short>, add_range<Short>, backward_range, kGroup}};
