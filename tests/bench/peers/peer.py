#!/usr/bin/env python3
"""The peer: transformers' Qwen3 and torch's fused AdamW, timed; prints one JSON object.

    peer.py step SHAPE autocast|bf16 [--threads N] [--steps N]   fp32 weights under bf16 autocast, or all in bf16
    peer.py update [--threads N] [--elements N]                  torch's fused AdamW on one fp32 tensor
    peer.py product [--threads N]                                a large bf16 matrix product

SHAPE is a JSON object: a Qwen3 config's keys, and `sequences`, `length`, `micro_batches`. As trainerd does, a step clips the
gradient's norm to 1; the attention is sdpa, without padding. The learning rate is small enough to leave the model what it is.
"""
import argparse
import json
import time

import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM


def model_of(shape, dtype):
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
            "vocab_size", "tie_word_embeddings")
    config = Qwen3Config(**{key: shape[key] for key in keys}, max_position_embeddings=4096, rms_norm_eps=1e-6,
                         attn_implementation="sdpa")
    config.use_cache = False
    return Qwen3ForCausalLM(config).to(dtype).train()


def step(shape, mode, steps):
    model = model_of(shape, torch.bfloat16 if mode == "bf16" else torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.999), weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(0)
    micro = shape.get("micro_batches", 1)
    seconds, compute, loss = [], [], None
    for _ in range(steps):
        tokens = torch.randint(0, 256, (micro, shape["sequences"], shape["length"]), generator=generator)
        began = time.monotonic()
        for part in tokens:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
                loss = model(input_ids=part, labels=part).loss / micro
            loss.backward()
        computed = time.monotonic()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.monotonic() - began)
        compute.append(computed - began)
    return {"seconds": seconds, "compute_seconds": compute, "loss": float(loss.detach()) * micro,
            "parameters": sum(p.numel() for p in model.parameters())}


def update(elements, rounds=12):
    weight = torch.nn.Parameter(torch.zeros(elements))
    optimizer = torch.optim.AdamW([weight], lr=1e-4, fused=True)
    weight.grad = torch.randn(elements) * 0.01
    seconds = []
    for _ in range(rounds):
        began = time.monotonic()
        optimizer.step()
        seconds.append(time.monotonic() - began)
    return {"seconds": seconds, "elements": elements}


def product(size=4096, rounds=8):
    a, b = torch.randn(size, size).bfloat16(), torch.randn(size, size).bfloat16()
    seconds = []
    for _ in range(rounds):
        began = time.monotonic()
        torch.mm(a, b)
        seconds.append(time.monotonic() - began)
    return {"seconds": seconds, "flops": 2 * size**3}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=("step", "update", "product"))
    parser.add_argument("shape", nargs="?")
    parser.add_argument("mode", nargs="?", choices=("autocast", "bf16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--elements", type=int, default=1 << 24)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.what == "step":
        result = step(json.loads(options.shape), options.mode, options.steps)
    else:
        result = update(options.elements) if options.what == "update" else product()
    print(json.dumps({**result, "threads": options.threads, "torch": torch.__version__,
                      "transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
