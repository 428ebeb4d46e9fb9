// The Python module scorefusion._C: raw pointers in, no torch headers, the interpreter lock released while computing.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "noise.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU kernels of scorefusion; scorefusion.ops calls them, with checked arguments.";
    m.def(
        "normal",
        [](uintptr_t out, const std::array<int64_t, 5>& shape, const std::vector<uint64_t>& seeds, uint32_t step,
           const std::array<int64_t, 3>& origin, uint32_t sample, int threads) {
            if (static_cast<int64_t>(seeds.size()) != shape[0]) throw std::invalid_argument("one seed for each item");
            py::gil_scoped_release unlocked;
            scorefusion::fill_normal(reinterpret_cast<float*>(out), shape.data(), seeds.data(), step, origin.data(),
                                     sample, threads);
        },
        py::arg("out"), py::arg("shape"), py::arg("seeds"), py::arg("step"), py::arg("origin"), py::arg("sample"),
        py::arg("threads"), "Fill float32 [B, C, D, H, W] at address `out` with counter-based standard normals.");
}
