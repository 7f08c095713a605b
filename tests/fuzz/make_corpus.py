#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets, corpus/TARGET/seed-*: small inputs that reach deep into each reader.

Run again after a format changes. Files of other names (crash-*) are inputs that once broke something; they stay.
"""
import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent / "corpus"
DIVIDER = b"\n====\n"


def put(target, name, data):
    folder = HERE / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("seed-" + name)).write_bytes(data if isinstance(data, bytes) else data.encode())


def compact(value):
    return json.dumps(value, separators=(",", ":")).encode()


# ---- safetensors ----

WIDTH = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "U32": 4, "U16": 2, "U8": 1}


def safetensors(tensors, metadata=None):
    """tensors: [(name, dtype, shape, bytes or None for a pattern)]"""
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, dtype, shape, values in tensors:
        count = WIDTH[dtype]
        for extent in shape:
            count *= extent
        values = bytes(i * 37 % 64 for i in range(count)) if values is None else values
        assert len(values) == count
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + count]}
        data += values
    text = compact(header)
    text += b" " * (-(8 + len(text)) % 8)
    return struct.pack("<Q", len(text)) + text + data


# ---- a model of one block, hidden 2 ----

CONFIG = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 2, "num_hidden_layers": 1,
          "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2, "intermediate_size": 3, "vocab_size": 4,
          "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True}
BLOCK = "model.layers.0."
MODEL = [("model.embed_tokens.weight", [4, 2]), (BLOCK + "input_layernorm.weight", [2]),
         (BLOCK + "self_attn.q_proj.weight", [2, 2]), (BLOCK + "self_attn.k_proj.weight", [2, 2]),
         (BLOCK + "self_attn.v_proj.weight", [2, 2]), (BLOCK + "self_attn.q_norm.weight", [2]),
         (BLOCK + "self_attn.k_norm.weight", [2]), (BLOCK + "self_attn.o_proj.weight", [2, 2]),
         (BLOCK + "post_attention_layernorm.weight", [2]), (BLOCK + "mlp.gate_proj.weight", [3, 2]),
         (BLOCK + "mlp.up_proj.weight", [3, 2]), (BLOCK + "mlp.down_proj.weight", [2, 3]), ("model.norm.weight", [2])]


def weights(rows, dtype):
    return safetensors([(name, dtype, shape, None) for name, shape in rows], {"format": "pt"})


def make_models():
    full = dict(CONFIG, eos_token_id=[3, 2], rope_scaling=None, sliding_window=16, use_sliding_window=False,
                layer_types=["full_attention"], attention_bias=False, hidden_act="silu", initializer_range=0.02)
    newer = {k: v for k, v in CONFIG.items() if k != "rope_theta"}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    put("config", "small", compact(CONFIG))
    put("config", "full", json.dumps(full, indent=1))
    put("config", "newer", compact(newer))
    put("config", "large", compact(dict(CONFIG, hidden_size=1 << 20, vocab_size=1 << 22, num_hidden_layers=1024)))

    put("safetensors", "mixed", safetensors([("a", "F32", [2, 3], None), ("b", "BF16", [4], None),
                                             ("c.scale", "U8", [1, 1, 2, 2], None), ("empty", "I64", [0], None),
                                             ("scalar", "F16", [], None)], {"format": "pt"}))
    put("safetensors", "none", safetensors([]))
    put("safetensors", "hole", struct.pack("<Q", 62) + b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}         ..')

    config, half = compact(CONFIG), 6
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = compact({"metadata": {"total_size": 208},
                     "weight_map": {name: shards[i >= half] for i, (name, _) in enumerate(MODEL)}})
    head = MODEL + [("lm_head.weight", [4, 2])]
    put("hub", "single", DIVIDER.join([config, b"", b"", b"", weights(MODEL, "F32")]))
    put("hub", "single-head", DIVIDER.join([config, b"", b"", b"", weights(head, "F16")]))
    put("hub", "shards", DIVIDER.join([config, index, weights(MODEL[:half], "BF16"), weights(MODEL[half:], "BF16"), b""]))


def make_checkpoint():
    files, slices = [bytearray(), bytearray()], []
    for name, shape in MODEL:
        count = 1
        for extent in shape:
            count *= extent
        for part in ("weight", "m", "v"):
            cut = count // 2 if name == MODEL[0][0] else 0  # one tensor lies across both files
            for which, (start, length) in enumerate([(0, cut), (cut, count - cut)]):
                if length == 0:
                    continue
                slices.append({"tensor": name, "part": part, "dtype": "F32", "start": start, "count": length,
                               "file": which, "offset": len(files[which])})
                files[which] += bytes(4 * length)
    root = {"kind": "trainerd checkpoint", "version": 1, "name": "it", "run": "", "policy": "fp32-master",
            "automatic": False, "step": 0, "total_steps": 3, "serial": 1, "time": "2026-01-01T00:00:00Z",
            "time_s": 1767225600, "bytes": sum(map(len, files)),
            "formats": {"weight": "fp32", "m": "fp32", "v": "fp32"}, "config": CONFIG, "state": {"t": 3},
            "files": [{"name": f"rank-0000{i}.bin", "bytes": len(f), "xxh3": "0" * 32} for i, f in enumerate(files)],
            "slices": slices}
    body = "{\n" + "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in root.items())
    put("checkpoint", "two-ranks", DIVIDER.join([body.encode(), *map(bytes, files)]))
    for slice in root["slices"]:  # version 2: each half of the embedding is one of its two columns
        if slice["tensor"] == MODEL[0][0]:
            slice.update(start=0, first=slice["file"], run=1, stride=2)
    root["version"] = 2
    body = "{\n" + "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in root.items())
    put("checkpoint", "two-columns", DIVIDER.join([body.encode(), *map(bytes, files)]))


def make_state():
    settings = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "decay_all": False, "clip": 1.0}
    schedule = {"kind": "cosine", "lr": 1e-4, "steps": 220, "warmup": 22, "warmup_init": 0.0, "min_lr": 0.0,
                "decay_end": 220, "wsd_decay": 0}
    run = {"id": "run-1", "recipe": "data: /x\nsteps: 220\nglobal_batch: 2\nmicro_batch: 1\n", "steps": 220, "k": 3,
           "skipped": 0, "skips_in_a_row": 0, "cursor": 6, "evaluated_at": -1, "settings": settings, "schedule": schedule,
           "alarm": {"quality": [1.0] * 10, "counted": 3, "next": 3, "level": 0}, "still": [0, 1, 0], "data": "0f"}
    state = {"t": 3, "total_steps": 3, "seed": "7", "settings": settings, "lanes": 0, "device": "cpu"}
    put("state", "idle", compact(dict(state, run=None)))
    put("state", "running", compact(dict(state, run=run)))
    put("state", "wsd", compact(dict(state, run=dict(run, schedule=dict(schedule, kind="wsd", wsd_decay=40)))))


# ---- data ----

def make_data():
    rows = [[1, 2, 3], [256, 65, 66, 67, 257]]
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row))
    tokens = b"".join(struct.pack("<H", t) for row in rows for t in row)
    data = safetensors([("row_start", "I64", [3], struct.pack("<3q", *starts)), ("tokens", "U16", [8], tokens),
                        ("trained", "U8", [8], bytes([0, 1, 1, 0, 0, 1, 1, 1]))])
    manifest = {"format": "trainerd-dataset", "version": 1,
                "tokenizer": {"name": "bytes", "hash": "0123456789abcdef", "vocabulary": 260}, "sort_key": None,
                "cutoff": 64, "statistics": {"rows": 2, "tokens": 8, "labelled": 5, "longest": 5, "cut": 0, "dropped": 0,
                                             "length_percentiles": {"5": 3, "25": 3, "50": 3, "75": 5, "95": 5}},
                "rows": {"length": [3, 5], "first_trained": [1, 2]}}
    put("dataset", "two-rows", compact(manifest) + DIVIDER + data)

    chat = [{"messages": [{"role": "user", "content": "Define abacus (noun)."}, {"role": "assistant", "content": "a frame"}],
             "instance_id": "b"},
            {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": [{"type": "text", "text": "é"}]},
                          {"role": "assistant", "content": "\u20ac"}, {"role": "tool", "content": "1"},
                          {"role": "assistant", "content": "two"}], "instance_id": "a"}]
    lines = b"\n".join(compact(entry) for entry in chat)
    put("chat", "two", b"\0" + lines + b"\n")
    put("chat", "sorted", b"\4" + b"\xef\xbb\xbf" + lines)
    put("chat", "documents", b'\2{"text": "a document"}\n\n{"text": "another\\u0000one"}\n')
    put("chat", "short", b"\3" + lines)


# ---- texts ----

def make_texts():
    for i, text in enumerate(["fp32-master", "bf16-kahan", "fp24-q8", "bf16+m=fp32+v=fp32", "fp32-master+compute=fp32",
                              "bf16-sr+reduce=bf16+accumulate=bf16", "fp32-master+v=q8+m=q8+weight=fp24"]):
        put("policy", str(i), text)
    put("recipe", "full", """data: train
order: shuffled(7)
epochs: 4
global_batch: 64
max_tokens: 2048
optimizer: {policy: fp32-master, lr: 1e-4, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01, clip: 1.0}
schedule:
  kind: cosine
  warmup_ratio: 0.1
checkpoint: {every: 10, keep: 2}
evaluate:
  data: held-out
""" + "\n====\nsteps=220\noptimizer.lr=3e-4\nschedule.kind=wsd\nschedule.wsd_decay=20")
    put("recipe", "least", "data: x\nsteps: 1\nglobal_batch: 1\nmicro_batch: 1\n")
    put("recipe", "tricky", "data: &a \"x\\u00e9\"\nsteps: 0x10\n# a comment\noptimizer:\n  betas:\n  - .9\n  - 1e-1\n")
    run = {"run": "run-1", "state": "done", "steps": 10, "step": 10, "policy": "bf16", "loss": 0.5, "began": "x"}
    step = {"step": 3, "update": 3, "loss": 1.5, "lr": 1e-4, "grad_norm": None, "seconds": {"step": 0.25}}
    put("records", "run", compact(run) + DIVIDER + compact(step))
    put("records", "event", b"{}" + DIVIDER + compact({"event": "warning", "text": "x", "step": 1}))


# ---- frames ----

def varint(value):
    out = b""
    while value > 0x7f:
        out += bytes([value & 0x7f | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def frame(message):
    return varint(len(message)) + message


def make_frames():
    recipe = "data: /x\nsteps: 3\nglobal_batch: 2\nmicro_batch: 1\n"
    train = field(1, recipe) + field(2, "r.yaml") + field(3, "optimizer.lr=1e-3") + field(3, "schedule.kind=linear")
    settings = field(1, "bf16-kahan") + field(2, "lr=1e-4") + field(2, "beta2=0.99") + field(3, 7) + field(5, 1)
    requests = [(10, b""), (15, field(1, "run-1") + field(2, 1) + field(4, 1)), (30, field(1, "/m") + field(2, field(1, 7))),
                (32, field(1, "/out") + field(2, "bf16")), (33, train), (34, field(1, "/held")), (38, settings),
                (39, field(1, "kind=wsd") + field(1, "wsd_decay=5")), (40, field(1, "one")), (41, field(2, "bf16")),
                (43, field(1, "one")), (44, b"")]
    stream = b"".join(frame(field(1, i + 1) + field(2, 1000) + field(3, "key") + field(number, body))
                      for i, (number, body) in enumerate(requests))
    put("frames", "requests", b"\0\xff" + stream)
    put("frames", "requests-in-pieces", b"\0\2" + stream)
    reply = field(1, field(1, 9) + field(2, field(1, "invalid") + field(2, "what") + field(3, "why")))
    event = field(2, field(1, field(1, "run-1") + field(2, 3) + field(5, 0.5)))
    put("frames", "answers", b"\1\xff" + frame(reply) + frame(event) + frame(b""))


if __name__ == "__main__":
    make_models()
    make_checkpoint()
    make_state()
    make_data()
    make_texts()
    make_frames()
    print(sum(1 for _ in HERE.glob("*/seed-*")), "seeds")
