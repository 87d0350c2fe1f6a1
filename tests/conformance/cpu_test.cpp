// Cpu conforms to EigenCpu.
#include "conformance/cpu_subjects.hpp"

#include "conformance/cases.hpp"
