// How Python hands over a tensor: (address, dtype code, sizes, strides), made by `view` in scorefusion.ops, or None.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <vector>

#include "view.h"

namespace pybind11::detail {

template <>
struct type_caster<scorefusion::View> {
    PYBIND11_TYPE_CASTER(scorefusion::View, const_name("tuple[int, int, tuple[int, ...], tuple[int, ...]] | None"));

    bool load(handle source, bool) {
        if (source.is_none()) return true;
        if (!isinstance<tuple>(source) || len(source) != 4) return false;
        const auto parts = reinterpret_borrow<tuple>(source);
        const auto sizes = parts[2].cast<std::vector<int64_t>>();
        const auto strides = parts[3].cast<std::vector<int64_t>>();
        if (sizes.size() != strides.size() || sizes.size() > scorefusion::kMaxDims) return false;
        value.data = reinterpret_cast<void*>(parts[0].cast<uintptr_t>());
        value.dtype = static_cast<scorefusion::DType>(parts[1].cast<int>());
        value.dims = static_cast<int>(sizes.size());
        for (size_t i = 0; i < sizes.size(); ++i) {
            value.size[i] = sizes[i];
            value.stride[i] = strides[i];
        }
        return true;
    }
};

}  // namespace pybind11::detail
