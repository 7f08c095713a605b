"""Makes the model's fixtures with transformers' own Qwen3.

    python make.py [FOLDER]      (needs torch and transformers; FOLDER defaults to this script's)

For each small model below, NAME/config.json (read by both sides), NAME/batch.json (sequences, labels, and how far
transformers loaded in bf16 is from the fp32 truth, tensor by tensor) and NAME/truth.f32: the labelled tokens'
log-probabilities, then every gradient of the summed loss, in the parameter table's order, little-endian fp32.

The weights are a formula, the same here and in test_golden.c: every value is exact in bf16, so that the fp32 truth and
the bf16 runs start from the same weights. Sequences are run one by one, as positions restart in each packed one.

rope.f32: inverse frequencies, cosines and sines for some (theta, head_dim, positions), as transformers forms them.
"""

import json
import os
import sys

import numpy
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

MODELS = {
    "untied": dict(hidden=32, layers=2, q_heads=4, kv_heads=2, head_dim=16, ffn=48, vocabulary=80, tied=False,
                   lengths=[23, 40, 9]),
    "tied": dict(hidden=24, layers=3, q_heads=3, kv_heads=1, head_dim=12, ffn=40, vocabulary=61, tied=True,
                 lengths=[50, 17]),
}
ROPES = [(1e6, 128, [0, 1, 2, 777, 4095, 40959]), (1e4, 32, [0, 1, 5, 511]), (5e6, 12, [0, 3, 100])]


def noise(count, seed):
    """uint32[count] from splitmix64 of seed * 2^32 + i."""
    with numpy.errstate(over="ignore"):
        z = (numpy.arange(count, dtype=numpy.uint64) + (numpy.uint64(seed) << numpy.uint64(32))) * numpy.uint64(
            0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        return (z >> numpy.uint64(32)).astype(numpy.uint32)


def weights(shape, seed):
    """Eight bits each: matrices in [-1/4, 1/4), norms in [3/4, 5/4)."""
    count = int(numpy.prod(shape))
    bits = noise(count, seed)
    if len(shape) == 1:
        values = 1 + ((bits % 64).astype(numpy.float32) - 32) / 128
    else:
        values = ((bits % 256).astype(numpy.float32) - 128) / 512
    return torch.from_numpy(values.reshape(shape))


def table_order(config):
    names = ["model.embed_tokens.weight"]
    block = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.q_norm",
             "self_attn.k_norm", "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj",
             "mlp.down_proj"]
    for layer in range(config["layers"]):
        names += [f"model.layers.{layer}.{name}.weight" for name in block]
    return names + ["model.norm.weight"] + ([] if config["tied"] else ["lm_head.weight"])


def hub_config(m):
    return {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "eos_token_id": 0, "head_dim": m["head_dim"], "hidden_act": "silu", "hidden_size": m["hidden"],
        "initializer_range": 0.02, "intermediate_size": m["ffn"], "max_position_embeddings": 256,
        "max_window_layers": m["layers"], "model_type": "qwen3", "num_attention_heads": m["q_heads"],
        "num_hidden_layers": m["layers"], "num_key_value_heads": m["kv_heads"], "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": None, "tie_word_embeddings": m["tied"],
        "torch_dtype": "float32", "use_cache": False, "use_sliding_window": False, "vocab_size": m["vocabulary"],
    }


def sequences(m):
    """(tokens, labels) of each sequence; about one label in five is missing."""
    made, at = [], 0
    total = sum(m["lengths"])
    tokens, labels, holes = noise(total, 1001), noise(total, 1002), noise(total, 1003)
    for length in m["lengths"]:
        take = slice(at, at + length)
        ids = (tokens[take] % m["vocabulary"]).astype(numpy.int64)
        want = numpy.where(holes[take] % 5 == 0, -1, (labels[take] % m["vocabulary"]).astype(numpy.int64))
        made.append((ids, want))
        at += length
    return made


def run(m, dtype):
    """(log-probabilities, gradients by name), fp32 arrays, of a model loaded in dtype."""
    config = Qwen3Config(**{k: v for k, v in hub_config(m).items() if k not in ("architectures", "torch_dtype")})
    config._attn_implementation = "eager"
    model = Qwen3ForCausalLM(config).to(dtype)
    names = table_order(m)
    parameters = dict(model.named_parameters())
    assert sorted(parameters) == sorted(names), sorted(parameters)
    with torch.no_grad():
        for seed, name in enumerate(names):
            parameters[name].copy_(weights(tuple(parameters[name].shape), seed))
    assert model.lm_head.weight.dtype == dtype
    logprobs, loss = [], 0
    for ids, want in sequences(m):
        logits = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0].float()
        rows = torch.log_softmax(logits, dim=-1)
        labelled = torch.from_numpy(want >= 0)
        picked = rows.gather(1, torch.from_numpy(numpy.maximum(want, 0))[:, None])[:, 0]
        picked = torch.where(labelled, picked, torch.zeros(()))
        logprobs.append(picked.detach())
        loss = loss - picked.sum()
    loss.backward()
    gradients = {name: parameters[name].grad.float().numpy() for name in names}
    return torch.cat(logprobs).numpy().astype(numpy.float32), gradients


def distance(got, want):
    """Root mean square of the error over that of what is wanted."""
    return float(numpy.sqrt(((got.astype(numpy.float64) - want) ** 2).sum() / (want.astype(numpy.float64) ** 2).sum()))


def make_model(folder, name, m):
    where = os.path.join(folder, name)
    os.makedirs(where, exist_ok=True)
    logprob, gradients = run(m, torch.float32)
    rough_logprob, rough = run(m, torch.bfloat16)
    labels = numpy.concatenate([want for _, want in sequences(m)])
    batch = {
        "made_by": f"make.py, torch {torch.__version__.split('+')[0]}",
        "lengths": m["lengths"],
        "labelled_tokens": int((labels >= 0).sum()),
        "bf16_logprob_error": distance(rough_logprob, logprob),
        "bf16_gradient_errors": {n: distance(rough[n], gradients[n]) for n in table_order(m)},
    }
    with open(os.path.join(where, "config.json"), "w") as file:
        json.dump(hub_config(m), file, indent=2)
        file.write("\n")
    with open(os.path.join(where, "batch.json"), "w") as file:
        json.dump(batch, file, indent=2)
        file.write("\n")
    with open(os.path.join(where, "truth.f32"), "wb") as file:
        file.write(logprob.astype("<f4").tobytes())
        for n in table_order(m):
            file.write(gradients[n].astype("<f4").tobytes())


def make_rope(folder):
    with open(os.path.join(folder, "rope.f32"), "wb") as file:
        for theta, head_dim, positions in ROPES:
            config = Qwen3Config(hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=head_dim,
                                 rope_theta=theta, max_position_embeddings=40960, vocab_size=8, num_hidden_layers=1)
            rotary = Qwen3RotaryEmbedding(config)
            at = torch.tensor([positions])
            cosines, sines = rotary(torch.zeros(1, len(positions), 4), at)
            half = head_dim // 2
            for part in (rotary.inv_freq, cosines[0, :, :half], sines[0, :, :half]):
                file.write(part.float().contiguous().numpy().astype("<f4").tobytes())


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    for name, m in MODELS.items():
        make_model(folder, name, m)
    make_rope(folder)
