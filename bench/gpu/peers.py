"""Times PyTorch's forms of what gpu_bench measures, on the same machine and at the same sizes.

    python3 peers.py OURS.tsv THEIRS.tsv [--limit SECONDS] [PATTERN]

Reads gpu_bench's records, whose field 8 says in words what to time; writes records of the same
form, one for each peer. A peer that fails is recorded with its error. Needs PyTorch with CUDA.
"""

import math
import re
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE = "cuda"
PEERS = {}


def peer(*names):
    def register(function):
        for name in names:
            PEERS[name] = function
        return function

    return register


def median_ms(call, sets=1, graph=True):
    """The median milliseconds of one call(i): in a CUDA graph of several, else back to back."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(f):
        start.record()
        f()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)

    for i in range(3):
        call(i % sets)
    one = max(timed(lambda: [call(i % sets) for i in range(3)]) / 3, 1e-3)
    calls = min(max(math.ceil(0.5 / one), sets), 64)
    samples = min(max(int(100 / (one * calls)), 5 if one < 200 else 3), 20)

    def launches():
        for i in range(calls):
            call(i % sets)

    replay = launches
    if graph and one < 5:  # a longer call hides its launches
        try:
            torch.cuda.synchronize()
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                launches()
            replay = captured.replay
        except Exception:  # what cannot be captured is launched
            torch.cuda.synchronize()
    timed(replay)
    return statistics.median(timed(replay) / calls for _ in range(samples))


def sets_of(size):
    return max(1, min(8, int(256e6 / size) + 1))


def normal(*shape, dtype=torch.bfloat16, scale=1.0, grad=False):
    x = torch.randn(*shape, device=DEVICE, dtype=dtype)
    return x.mul_(scale).requires_grad_(grad)


@peer("copy")
def copy(size):
    a = torch.zeros(size, dtype=torch.uint8, device=DEVICE)
    b = torch.empty_like(a)
    yield "torch copy_", median_ms(lambda _: b.copy_(a))


@peer("mm")
def mm(rows, out, width):
    sets = sets_of(2 * out * width)
    x = [normal(rows, width) for _ in range(sets)]
    w = [normal(out, width) for _ in range(sets)]
    y = [torch.empty(rows, out, device=DEVICE, dtype=torch.bfloat16) for _ in range(sets)]
    yield "torch.mm", median_ms(lambda i: torch.mm(x[i], w[i].t(), out=y[i]), sets)


@peer("grouped_mm")
def grouped_mm(experts, rows, out, width):
    product = getattr(F, "grouped_mm", None) or torch._grouped_mm
    x = normal(experts * rows, width)
    w = normal(experts, out, width)
    ends = torch.arange(1, experts + 1, device=DEVICE, dtype=torch.int32) * rows
    yield "torch grouped_mm bf16", median_ms(lambda _: product(x, w.transpose(1, 2), offs=ends))


def attention_inputs(tokens, grad):
    heads = 128
    q, k = (normal(1, tokens, heads, 192, grad=grad) for _ in range(2))
    v = normal(1, tokens, heads, 128, grad=grad)
    return q, k, v


def attend(q, k, v):
    return F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
    )


@peer("sdpa")
def sdpa(tokens):
    q, k, v = attention_inputs(tokens, False)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        yield "cuDNN SDPA", median_ms(lambda _: attend(q, k, v))


@peer("sdpa_backward")
def sdpa_backward(tokens):
    q, k, v = attention_inputs(tokens, True)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        o = attend(q, k, v)
        d_o = torch.randn_like(o)
        yield "cuDNN SDPA backward", median_ms(
            lambda _: torch.autograd.grad(o, (q, k, v), d_o, retain_graph=True), graph=False
        )


def norm(x, w):
    r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (x * r * w.float()).to(torch.bfloat16)


def codes(x):
    groups = x.float().unflatten(-1, (-1, 128))
    scale = groups.abs().amax(-1, keepdim=True) / 448
    return (groups / scale).to(torch.float8_e4m3fn).flatten(-2), scale.squeeze(-1)


@peer("rms_norm")
def rms_norm(tokens, width):
    x, w = normal(tokens, width, dtype=torch.float32), normal(width)
    yield "torch eager norm", median_ms(lambda _: norm(x, w))
    compiled = torch.compile(norm)
    yield "torch.compile norm", median_ms(lambda _: compiled(x, w))


@peer("rms_norm_backward")
def rms_norm_backward(tokens, width):
    x, w = normal(tokens, width, dtype=torch.float32, grad=True), normal(width, grad=True)
    y = torch.compile(norm)(x, w)
    dy = torch.randn_like(y)
    yield "torch.compile norm backward", median_ms(
        lambda _: torch.autograd.grad(y, (x, w), dy, retain_graph=True), graph=False
    )


@peer("rms_norm_quantize")
def rms_norm_quantize(tokens, width):
    x, w = normal(tokens, width, dtype=torch.float32), normal(width)
    chain = torch.compile(lambda x, w: codes(norm(x, w)))
    yield "torch.compile chain", median_ms(lambda _: chain(x, w))


@peer("swiglu")
def swiglu(rows, width):
    a, b = normal(rows, width), normal(rows, width)
    chain = torch.compile(lambda a, b: F.silu(a) * b)
    yield "torch.compile swiglu", median_ms(lambda _: chain(a, b))


@peer("swiglu_quantize")
def swiglu_quantize(rows, width):
    a, b = normal(rows, width), normal(rows, width)
    chain = torch.compile(lambda a, b: codes(F.silu(a) * b))
    yield "torch.compile chain", median_ms(lambda _: chain(a, b))


def routing(tokens, chosen):
    order = torch.argsort(torch.randint(256, (tokens * chosen,), device=DEVICE), stable=True)
    return order // chosen


@peer("index_select")
def index_select(tokens, chosen, width):
    x, rows = normal(tokens, width), routing(tokens, chosen)
    yield "torch index_select", median_ms(lambda _: torch.index_select(x, 0, rows))


@peer("index_add")
def index_add(tokens, chosen, width):
    slots, rows = normal(tokens * chosen, width), routing(tokens, chosen)
    weights = torch.rand(tokens * chosen, 1, device=DEVICE, dtype=torch.bfloat16)
    y = normal(tokens, width)
    yield "torch index_add_", median_ms(lambda _: y.index_add_(0, rows, slots * weights))


@peer("gate")
def gate(tokens, experts, chosen):
    logits = normal(tokens, experts, dtype=torch.float32)
    bias = normal(experts, dtype=torch.float32, scale=0.01)

    def call(_):
        scores = logits.sigmoid()
        choice = scores + bias
        groups = choice.view(tokens, 8, -1).topk(2, -1)[0].sum(-1)
        keep = torch.zeros_like(groups).scatter_(1, groups.topk(4, -1)[1], 1)
        masked = choice.masked_fill(keep.repeat_interleave(experts // 8, 1) == 0, -math.inf)
        index = masked.topk(chosen, -1)[1]
        weights = scores.gather(1, index)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5
        flat = index.flatten()
        return weights, torch.argsort(flat, stable=True), torch.bincount(flat, minlength=experts)

    yield "torch eager chain", median_ms(call)


@peer("adamw")
def adamw(parameters):
    w = torch.nn.Parameter(normal(parameters, dtype=torch.float32, scale=0.02))
    w.grad = torch.full_like(w, 1e-3)
    optimizer = torch.optim.AdamW([w], lr=1e-4, fused=True)
    yield "torch fused AdamW", median_ms(lambda _: optimizer.step(), graph=False)


@peer("linear_cross_entropy")
def linear_cross_entropy(tokens, width, vocabulary):
    x, w = normal(tokens, width, grad=True), normal(vocabulary, width, scale=0.02, grad=True)
    labels = torch.randint(vocabulary, (tokens,), device=DEVICE)

    def call(_):
        loss = F.cross_entropy(F.linear(x, w).float(), labels)
        return torch.autograd.grad(loss, (x, w))

    yield "torch linear + cross_entropy", median_ms(call, graph=False)


def published_config(**sizes):
    from transformers import DeepseekV3Config

    config = DeepseekV3Config(**sizes)
    config._attn_implementation = "sdpa"
    config._experts_implementation = "grouped_mm"
    return config


def published_attention():
    """The fastest that takes 192/128, else what there is."""
    return sdpa_kernel(
        [
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.MATH,
        ],
        set_priority=True,
    )


def decoder_layer(experts):
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as published

    config = published_config(
        num_hidden_layers=4, n_routed_experts=experts, first_k_dense_replace=0
    )
    with torch.device(DEVICE):
        torch.set_default_dtype(torch.bfloat16)
        try:
            layer = published.DeepseekV3DecoderLayer(config, 3)
            rope = published.DeepseekV3RotaryEmbedding(config)
        finally:
            torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            weight.fill_(1) if "norm" in name else weight.normal_(0, 0.01)
    return layer, rope


def layer_call(layer, rope, tokens, backward):
    x = normal(1, tokens, 7168, grad=backward)
    positions = torch.arange(tokens, device=DEVICE)[None]
    angles = rope(x, positions)
    dy = normal(1, tokens, 7168, scale=1e-3)

    def forward():
        y = layer(x, attention_mask=None, position_ids=positions, position_embeddings=angles)
        return y[0] if isinstance(y, tuple) else y

    def call(_):
        if not backward:
            with torch.no_grad():
                return forward()
        for weight in layer.parameters():
            weight.grad = None
        forward().backward(dy)

    return call


@peer("layer", "layer_forward")
def layer(tokens, experts, backward=True):
    block, rope = decoder_layer(experts)
    with published_attention():
        yield "transformers layer bf16", median_ms(
            layer_call(block, rope, tokens, backward), graph=False
        )


@peer("train")
def train(rows, length):
    from transformers import DeepseekV3ForCausalLM

    config = published_config(
        vocab_size=32768,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=640,
        num_hidden_layers=13,  # twelve, and one more for the MTP module
        num_mtp_layers=0,
        first_k_dense_replace=1,
        num_attention_heads=16,
        num_key_value_heads=16,
        q_lora_rank=768,
        n_routed_experts=32,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
    )
    with torch.device(DEVICE):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = DeepseekV3ForCausalLM(config)
        finally:
            torch.set_default_dtype(torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(32768, (rows, length), device=DEVICE)
    times = []
    for step in range(4):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        with published_attention():
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begin))
    yield "transformers bf16, no MTP loss", statistics.median(times[1:])


def measure(words):
    """Yields (label, ms) or (label, error) of a peer's words."""
    name, numbers = words[0], [int(word) for word in words[1:]]
    extra = {"backward": False} if name == "layer_forward" else {}
    try:
        yield from PEERS[name](*numbers, **extra)
    except Exception as error:  # as text: the error itself would keep its tensors alive
        yield "torch " + name, " ".join(f"{type(error).__name__}: {error}".split())[:200]


def main():
    arguments = sys.argv[1:]
    limit = 120.0
    if "--limit" in arguments:
        at = arguments.index("--limit")
        limit = float(arguments[at + 1])
        del arguments[at : at + 2]
    ours, theirs = arguments[:2]
    pattern = arguments[2] if len(arguments) > 2 else ""
    deadline = time.monotonic() + limit
    known = {}  # cases of equal words share their peers
    with open(ours) as lines, open(theirs, "w") as out:
        for line in lines:
            fields = line.rstrip("\n").split("\t")
            name, work, unit, words = fields[0], fields[3], fields[4], fields[8]
            if not words or not re.search(pattern, name):
                continue
            if words not in known:
                if time.monotonic() > deadline:
                    known[words] = [("torch", "left out: the time is used up")]
                else:
                    known[words] = list(measure(words.split()))
                torch.cuda.empty_cache()
            for label, result in known[words]:
                failed = isinstance(result, str)
                status, ms = (result, math.nan) if failed else ("ok", result)
                out.write(f"{name}\t{status}\t{ms}\t{work}\t{unit}\t{label}\tnan\t0\t\t0\t\n")
                out.flush()
                print(f"{name}: {label}: {status if failed else f'{ms:.4f} ms'}", flush=True)


if __name__ == "__main__":
    main()
