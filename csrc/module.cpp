// The Python module scorefusion._C: raw pointers in, no torch headers, the interpreter lock released while computing.
#include <pybind11/pybind11.h>

// Each operation's file ends with its bind function.
#define SF_EACH_OPERATION(DO)                                                                                \
    DO(noise) DO(fuse_scores) DO(fuse_step) DO(ensemble_features) DO(gather_slices) DO(norm_act) DO(pointwise) \
    DO(winograd)
#define SF_DECLARE(name) void bind_##name(pybind11::module_& m);
#define SF_CALL(name) scorefusion::bind_##name(m);

namespace scorefusion {
SF_EACH_OPERATION(SF_DECLARE)
}

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU kernels of scorefusion; scorefusion.ops calls them, with checked arguments.";
    SF_EACH_OPERATION(SF_CALL)
}
