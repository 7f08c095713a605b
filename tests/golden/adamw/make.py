#!/usr/bin/env python3
"""Makes torch_fused.bin: 1000 steps of torch's fused CPU AdamW in fp32, with every state on the way.

Run with any torch of 2.4 or later on a processor with AVX-512 or AVX2 (the fused kernel's vector body; its tail behind the
last whole vector forms m without fma, so the tensor has exactly 16 elements and no tail):

    python make.py torch_fused.bin

Little endian: "ADAMW1\\0\\0", int32 elements, int32 steps, double eps, weight_decay; then for each step double lr, beta1,
beta2, float gradient[16], and after the step float W[16], m[16], v[16]. The start (W, m = v = 0) stands before step 1 as
one float W[16]. The gradients are made here by a fixed integer generator, not by torch's.
"""
import math
import struct
import sys

import torch

STEPS, EPS, DECAY = 1000, 1e-8, 0.01
# A norm's weight, large, small, tiny, zero, subnormal and negative ones.
WEIGHTS = [1.0, -1.0, 0.02, -0.02, 0.75, 1.5, 1e-3, -3e-4, 0.0, 1e-8, 1e-30, 1e-40, 0.1, -0.3, 2.0 ** -9, 1.9990234375]
# What each element's gradient looks like: its scale, and a rule by step.
SCALES = [1e-2, 1e-3, 1e-2, 1.0, 1e-5, 1e-8, 1e-12, 1e-20, 1e-2, 1e3, 1e10, 1e-2, 1e-3, 1e-4, 3e-7, 1e-22]


def uniform(state):
    state[0] = (state[0] * 6364136223846793005 + 1442695040888963407) % 2 ** 64
    return (state[0] >> 40) / 2 ** 24 * 2 - 1


def gradient(step, state):
    values = []
    for i, scale in enumerate(SCALES):
        u = uniform(state)
        if i % 4 == 1:
            u = 0.5 + 0.5 * u * u            # one sign: m and sqrt(v) come close
        if i % 4 == 2 and step % 200 > 100:
            u = 0.0                          # long silences: m and v decay
        if i % 8 == 7 and step % 50 == 0:
            u *= 1000.0                      # spikes
        values.append(u * scale)
    return torch.tensor(values, dtype=torch.float32)


def floats(tensor):
    return struct.pack("<16f", *tensor.tolist())


def main(path):
    torch.set_num_threads(1)
    weight = torch.nn.Parameter(torch.tensor(WEIGHTS, dtype=torch.float32))
    optimizer = torch.optim.AdamW([weight], lr=1e-3, eps=EPS, weight_decay=DECAY, fused=True)
    group, state = optimizer.param_groups[0], [20260101]
    with open(path, "wb") as out:
        out.write(b"ADAMW1\0\0" + struct.pack("<iidd", len(WEIGHTS), STEPS, EPS, DECAY) + floats(weight.detach()))
        for step in range(STEPS):
            group["lr"] = 1e-3 * min(1.0, step / 50) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            # .5 takes the second arm of m's formula; below it torch forms the coefficient as fp32(1-beta1) - 1, which
            # is not the contract's fp32(beta1).
            group["betas"] = (0.9, 0.999) if step < 700 else (0.8, 0.95) if step < 900 else (0.5, 0.99)
            weight.grad = gradient(step, state)
            optimizer.step()
            s = optimizer.state[weight]
            out.write(struct.pack("<ddd", group["lr"], *group["betas"]) + floats(weight.grad))
            out.write(floats(weight.detach()) + floats(s["exp_avg"]) + floats(s["exp_avg_sq"]))
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")


if __name__ == "__main__":
    main(sys.argv[1])
