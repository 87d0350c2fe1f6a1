// Cuda conforms to EigenCpu: the cases of every other backend.
#include "conformance_subjects.hpp"

#include "conformance/cases.hpp"
