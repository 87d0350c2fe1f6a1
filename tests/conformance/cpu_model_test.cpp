// Models on Cpu conform to EigenCpu.
#include "conformance/cpu_subjects.hpp"

#include "conformance/all_models.hpp"
