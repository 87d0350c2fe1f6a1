// Training steps of a whole model in DeepSeek-V3's FP8 recipe.
#include "model_bench.cuh"

void gpu_bench::train_fp8_cases(Cases& cases) { add_train_cases<dsv3::Fp8>(cases); }
