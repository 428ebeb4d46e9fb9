// The Python module scorefusion._cuda: CUDA kernels for machines without Triton.
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>

#include "common/bind.h"
#include "cuda/fuse_step_cuda.h"

namespace scorefusion {
namespace {

DeviceView on_device(const View& view) {
    DeviceView out{view.data, {}, static_cast<int>(view.dtype)};
    for (int i = 0; i < 5; ++i) out.stride[i] = view.stride[i];
    return out;
}

void fuse_step(const View& x_next, const View& x0, const std::vector<View>& scores, const View& maps,
               const std::vector<double>& base, double gain, const View& x_t, const View& x0_prev, uintptr_t rows,
               uintptr_t index, uintptr_t keys, std::optional<float> clamp, const std::array<int64_t, 3>& factor,
               const View& measured, uintptr_t stream) {
    CudaStep step{};
    step.branches = static_cast<int>(scores.size());
    if (step.branches > kMaxCudaBranches) throw std::invalid_argument("too many branches");
    for (int k = 0; k < step.branches; ++k) {
        step.scores[k] = on_device(scores[k]);
        step.base[k] = static_cast<float>(base[k]);
    }
    step.maps = on_device(maps);
    step.measured = on_device(measured);
    step.x_t = on_device(x_t);
    step.x0_prev = on_device(x0_prev);
    step.x_next = static_cast<float*>(x_next.data);
    step.x0 = static_cast<float*>(x0.data);
    step.rows = reinterpret_cast<const float*>(rows);
    step.index = reinterpret_cast<const int32_t*>(index);
    step.keys = reinterpret_cast<const NoiseKey*>(keys);
    for (int i = 0; i < 5; ++i) step.size[i] = x0.size[i];
    for (int i = 0; i < 3; ++i) step.factor[i] = factor[i];
    if (factor[1] > kCudaTile || factor[2] > kCudaTile) throw std::invalid_argument("a block wider than a tile");
    step.gain = static_cast<float>(gain);
    step.limit = clamp.value_or(INFINITY);
    pybind11::gil_scoped_release unlocked;
    if (const char* error = launch_fuse_step(step, stream)) throw std::runtime_error(std::string("CUDA: ") + error);
}

}  // namespace
}  // namespace scorefusion

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels of scorefusion; scorefusion.ops calls them, with checked arguments.";
    m.def("fuse_step", &scorefusion::fuse_step,
          "Write float32 `x_next` and `x0` [B, C, D, H, W] of one solver step; pointers and stream are numbers.");
}
