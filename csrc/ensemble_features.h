// One slab of one branch's features on its way into a feature layer's sum, and the loops over it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "products.h"
#include "view.h"

namespace scorefusion {

// total [B, O, D/s, H/s, W/s] with its axes named by the plane, features [B n, I, h, w], weight [O, I, s].
struct Slab {
    View total, features, weight;
    int64_t batch, outputs, inputs, scale, coarse, width, pixels, first;  // coarse = n / s, pixels = h w
    int64_t slice_stride, y_stride, x_stride;                            // of total, in elements

    // axis is the plane's own, 2 to 4; total may be a gradient, weight may be the weight's gradient.
    Slab(const View& total, const View& features, const View& weight, int axis, int64_t first)
        : total(total), features(features), weight(weight), first(first) {
        batch = total.size[0], outputs = weight.size[0], inputs = weight.size[1], scale = weight.size[2];
        coarse = features.size[0] / (batch * scale);
        width = features.size[3], pixels = features.size[2] * width;
        slice_stride = total.stride[axis];
        y_stride = total.stride[axis == 2 ? 3 : 2];
        x_stride = total.stride[axis == 4 ? 3 : 4];
    }

    int64_t total_at(int64_t item, int64_t slice, int64_t pixel) const {
        return item * total.stride[0] + (first + slice) * slice_stride + pixel / width * y_stride +
               pixel % width * x_stride;
    }
    // Where slice jj of a coarse slice's s slices begins.
    int64_t slice_at(int64_t item, int64_t slice, int64_t jj) const {
        return ((item * coarse + slice) * scale + jj) * features.stride[0];
    }
};

// Zeroed memory on a cache line's boundary.
template <typename T>
class Scratch {
public:
    explicit Scratch(int64_t count)
        : data_(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64)))) {
        std::fill_n(data_.get(), count, T());
    }
    T* get() const { return data_.get(); }

private:
    struct Release {
        void operator()(T* data) const { ::operator delete(data, std::align_val_t(64)); }
    };
    std::unique_ptr<T, Release> data_;
};

constexpr int64_t kDepth = 256;     // Numbers of the summed axis at a time: rows and a panel of weights stay near
constexpr int64_t kChunkRows = 96;  // pixels whose sums one thread holds: a multiple of 4, 6, 8, 12

}  // namespace scorefusion
