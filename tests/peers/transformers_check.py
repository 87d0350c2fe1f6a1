#!/usr/bin/env python3
"""Loads folders that save_checkpoint wrote in Hugging Face transformers and compares logits.

    pip install torch transformers accelerate    (measured: 2.15.0, 5.24.0, 1.15.0)
    g++ -std=c++20 -O2 -march=native -Iinclude -isystem /usr/include/eigen3 \\
        tests/peers/write_checkpoint.cpp -o write_checkpoint -pthread
    tests/peers/transformers_check.py ./write_checkpoint

Not part of ctest: it needs PyTorch. Exits 1 where a check fails.
"""
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, FineGrainedFP8Config
from transformers.utils import logging

logging.disable_progress_bar()
program = sys.argv[1]
tokens = [(i * i * 7 + 3 * i + 1) % 256 for i in range(48)]
failures = 0


def judge(what, error, tolerance):
    global failures
    ok = error <= tolerance
    failures += not ok
    print(f"{what:60} {error:.3g}  <= {tolerance:g}  {'ok' if ok else 'FAIL'}", flush=True)


def ours(folder):
    """Logits of our FP32 model from the same folder."""
    out = folder + ".logits"
    subprocess.run([program, "logits", folder, out] + [str(t) for t in tokens], check=True)
    with open(out, "rb") as file:
        values = torch.frombuffer(bytearray(file.read()), dtype=torch.float32)
    return values.reshape(len(tokens), -1)


def theirs(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    with torch.no_grad():
        return model, model(torch.tensor([tokens])).logits[0].float()


def relative(a, b):
    """max|a - b| / max|b|"""
    return ((a - b).abs().max() / b.abs().max()).item()


with tempfile.TemporaryDirectory() as at:
    for dtype in ("bf16", "fp8"):
        subprocess.run([program, "write", f"{at}/{dtype}", dtype, "3"], check=True)
    _, logits = theirs(f"{at}/bf16")
    judge("BF16 folder, FP32 logits", relative(ours(f"{at}/bf16"), logits), 1e-5)

    # transformers holds dequantised weights in BF16; ours are code times scale in FP32.
    dequantize = FineGrainedFP8Config(dequantize=True)
    _, logits = theirs(f"{at}/fp8", quantization_config=dequantize)
    judge("FP8 folder, dequantised", relative(ours(f"{at}/fp8"), logits), 3e-2)
    # transformers looks for MTP's weights at layer 61, wherever the main layers end.
    subprocess.run([program, "write", f"{at}/mtp", "bf16", "61", "--mtp"], check=True)
    model, logits = theirs(f"{at}/mtp")
    # Twenty times as many layers as above, each with its own rounding.
    judge("BF16 folder of 61 layers with MTP", relative(ours(f"{at}/mtp"), logits), 5e-5)
    prompt = torch.tensor([tokens[:16]])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    alone = model.generate(prompt, **options)
    with_mtp = model.generate(prompt, use_mtp=True, **options)
    judge("generate(use_mtp=True): tokens that differ from greedy",
          (alone != with_mtp).sum().item() if alone.shape == with_mtp.shape else 99, 0)

sys.exit(failures > 0)
