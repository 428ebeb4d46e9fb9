// The Python module scorefusion._C: raw pointers in, no torch headers, the interpreter lock released while computing.
#include "bind.h"

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU kernels of scorefusion; scorefusion.ops calls them, with checked arguments.";
    scorefusion::bind_noise(m);
    scorefusion::bind_fuse_scores(m);
    scorefusion::bind_fuse_step(m);
    scorefusion::bind_ensemble_features(m);
    scorefusion::bind_gather_slices(m);
    scorefusion::bind_norm_act(m);
    scorefusion::bind_norm_act_backward(m);
    scorefusion::bind_pointwise(m);
    scorefusion::bind_winograd(m);
}
