// One MoE layer of DeepSeek-V3's sizes in bf16.
#include "layer_bench.cuh"

void gpu_bench::layer_bf16_cases(Cases& cases) { add_layer_cases<dsv3::Bf16>(cases); }
