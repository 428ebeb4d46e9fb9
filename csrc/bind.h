// How Python hands over a tensor: (address, dtype code, sizes, strides), made by scorefusion/ops/view.py.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <vector>

#include "view.h"

namespace pybind11::detail {

template <>
struct type_caster<scorefusion::View> {
    PYBIND11_TYPE_CASTER(scorefusion::View, const_name("tuple[int, int, tuple[int, ...], tuple[int, ...]]"));

    bool load(handle source, bool) {
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

namespace scorefusion {

// Each op's file ends with one of these; module.cpp calls them.
void bind_noise(pybind11::module_& m);
void bind_fuse_scores(pybind11::module_& m);
void bind_fuse_step(pybind11::module_& m);
void bind_ensemble_features(pybind11::module_& m);
void bind_gather_slices(pybind11::module_& m);
void bind_norm_act(pybind11::module_& m);
void bind_norm_act_backward(pybind11::module_& m);
void bind_pointwise(pybind11::module_& m);
void bind_winograd(pybind11::module_& m);

}  // namespace scorefusion
