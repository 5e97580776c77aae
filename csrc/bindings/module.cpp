// The extension module only lists what it registers; each subject binds itself.
#include "bindings/register.h"

PYBIND11_MODULE(_core, m) {
    m.doc() = "resfuse's native core: programs of fused layers over NumPy views. Knows no torch.";
    register_dictionaries(m);
    register_fingerprint(m);
    register_global_avg_pool(m);
    register_info(m);
    register_planes(m);
    register_program(m);
    register_training(m);
    register_plan(m);
}
