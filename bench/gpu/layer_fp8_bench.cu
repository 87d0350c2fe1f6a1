// One MoE layer of DeepSeek-V3's sizes in its FP8 recipe.
#include "layer_bench.cuh"

void gpu_bench::layer_fp8_cases(Cases& cases) { add_layer_cases<dsv3::Fp8>(cases); }
