// Training steps of a whole model in bf16.
#include "model_bench.cuh"

void gpu_bench::train_bf16_cases(Cases& cases) { add_train_cases<dsv3::Bf16>(cases); }
