// Decoding of a whole model in DeepSeek-V3's FP8 recipe.
#include "model_bench.cuh"

void gpu_bench::generate_fp8_cases(Cases& cases) { add_generate_cases<dsv3::Fp8>(cases); }
