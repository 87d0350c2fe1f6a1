// Decoding of a whole model in bf16.
#include "model_bench.cuh"

void gpu_bench::generate_bf16_cases(Cases& cases) { add_generate_cases<dsv3::Bf16>(cases); }
