#!/usr/bin/env python3
"""Loads folders that save_checkpoint wrote in Hugging Face transformers and compares logits.

    pip install torch transformers accelerate    (measured: 2.15.0, 5.24.0, 1.15.0)
    g++ -std=c++20 -O2 -march=native -Iinclude -isystem /usr/include/eigen3 \\
        tests/peers/write_checkpoint.cpp -o write_checkpoint -pthread
    tests/peers/transformers_check.py ./write_checkpoint [SEED]    (of other tokens)

Two FP32 models differ by the rounding of both, so the reference is transformers in float64. Ours in
Fp64 tells whether the functions are the same; ours in Fp32, how much it rounds off; transformers'
own FP32 stands beside it.

Not part of ctest: it needs PyTorch. Exits 1 where a check fails.
"""
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, modeling_rope_utils
from transformers.integrations import finegrained_fp8
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.utils import logging

logging.disable_progress_bar()
program = sys.argv[1]
tokens = [(i * i * 7 + 3 * i + 1) % 256 for i in range(48)]
if len(sys.argv) > 2:
    tokens = torch.randint(0, 256, (48,), generator=torch.manual_seed(int(sys.argv[2]))).tolist()
failures = 0


def judge(what, error, tolerance):
    global failures
    ok = error <= tolerance
    failures += not ok
    print(f"{what:60} {error:.3g}  <= {tolerance:g}  {'ok' if ok else 'FAIL'}", flush=True)


def ours(folder, dtype):
    """Logits of our model from the same folder."""
    out = folder + ".logits"
    name = {torch.float32: "fp32", torch.float64: "fp64"}[dtype]
    subprocess.run([program, "logits", folder, out, name] + [str(t) for t in tokens], check=True)
    with open(out, "rb") as file:
        values = torch.frombuffer(bytearray(file.read()), dtype=dtype)
    return values.reshape(len(tokens), -1).double()


class Torch64:
    """torch for code that asks for float32 by name: RMSNorm, router, angles and their frequencies,
    scales of FP8 codes. Under dtype=torch.float64 they stay float32, which leaves 2e-6 at 61
    layers: no reference for 1e-5."""

    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def theirs(folder, dtype, **options):
    """transformers' model and its logits, computed in dtype throughout."""
    with ExitStack() as stack:
        if dtype == torch.float64:
            for module in (modeling_deepseek_v3, modeling_rope_utils, finegrained_fp8):
                stack.enter_context(mock.patch.object(module, "torch", Torch64()))
            options["experts_implementation"] = "eager"  # PyTorch has no grouped product in double
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
        with torch.no_grad():
            return model, model(torch.tensor([tokens])).logits[0].double()


def relative(a, b):
    """max|a - b| / max|b|"""
    return ((a - b).abs().max() / b.abs().max()).item()


def compare(what, folder, tolerance, **options):
    """Judges our logits in Fp64 and in Fp32; returns transformers' FP32 model."""
    _, exact = theirs(folder, torch.float64, **options)
    model, single = theirs(folder, torch.float32, **options)
    judge(f"{what}: ours in Fp64", relative(ours(folder, torch.float64), exact), 1e-12)
    own = ours(folder, torch.float32)
    judge(f"{what}: ours in Fp32", relative(own, exact), tolerance)
    print(f"{what}: transformers in FP32".ljust(60), f"{relative(single, exact):.3g}")
    print(f"{what}: ours and transformers' in FP32".ljust(60), f"{relative(own, single):.3g}")
    return model


with tempfile.TemporaryDirectory() as at:
    for dtype in ("bf16", "fp8"):
        subprocess.run([program, "write", f"{at}/{dtype}", dtype, "3"], check=True)
    compare("BF16, 3 layers", f"{at}/bf16", 1e-5)
    dequantize = FineGrainedFP8Config(dequantize=True)
    compare("FP8, 3 layers, dequantised", f"{at}/fp8", 1e-5, quantization_config=dequantize)
    # transformers looks for MTP's weights at layer 61, wherever the main layers end.
    subprocess.run([program, "write", f"{at}/mtp", "bf16", "61", "--mtp"], check=True)
    # Twenty times as many layers, each with its own rounding: transformers' FP32 is no closer.
    model = compare("BF16, 61 layers and MTP", f"{at}/mtp", 2e-5)
    prompt = torch.tensor([tokens[:16]])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    alone = model.generate(prompt, **options)
    with_mtp = model.generate(prompt, use_mtp=True, **options)
    judge("generate(use_mtp=True): tokens that differ from greedy",
          (alone != with_mtp).sum().item() if alone.shape == with_mtp.shape else 99, 0)

sys.exit(failures > 0)
