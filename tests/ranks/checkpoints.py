#!/usr/bin/env python3
"""Checkpoints and hub folders across layouts, ZeRO stages and policies. A line a case.

    checkpoints.py RANKS_TRAIN [--hooks] [NAME…]

A few steps are trained and saved under one layout. Every other layout loads that, saves it again, exports it, loads the
export and saves that: each of these must hold the same bits, as this file reads them, which knows the format and not the
code. Then runs are stopped under one layout and go on under another.
"""
import array
import json
import os
import shutil
import struct
import subprocess
import sys

import layouts  # which reads RANKS_TRAIN from the same place, and made the folder

NAMES = layouts.NAMES
FOLDER = layouts.FOLDER
WIDTH = {"F32": 4, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1}
CHAIN = ("fp32-master", ["d2", "t2", "c2 zero1", "d2t2 zero1", "p2", "t4", "t2p2 zero2", "d1", "t2c2"])
CHAINS = {"fp32_master": (CHAIN[0], CHAIN[1]),
          "fp24_q8": ("fp24-q8", ["t2", "d1", "d2t2 zero2", "p2"]),
          "fp32_split": ("fp32-split", ["d2 zero1", "t2 zero1", "t2p2 zero2", "d4 zero3"]),
          "eight_ranks": ("fp32-master", ["d8", "d4t2", "d2t2p2", "d1"]),
          "bf16_kahan": ("bf16-kahan", ["t4", "d2 zero2"])}


def config_text(tied):
    return json.dumps({**json.loads(layouts.config_text(tied)), "hidden_size": 32, "intermediate_size": 64})


def arguments(layout):
    """"d2t2 zero1 guarded" as ranks_train wants it, and how many ranks."""
    words = layout.split()
    zero = next((word[4:] for word in words if word.startswith("zero")), "3")
    return layouts.ranks_of(words[0]), ["guarded" if "guarded" in words else "cpu", words[0], zero, "0", "0", "1"]


def places(entry):
    """Where the elements of a slice lie in their array: (first, count) of each stretch, in their order."""
    start, end = entry["start"], entry["start"] + entry["count"]
    if "run" not in entry:
        return [(start, end - start)]
    first, run, stride = entry["first"], entry["run"], entry["stride"]
    found = []
    while start < end:
        count = min(run - start % run, end - start)
        found.append((first + start // run * stride + start % run, count))
        start += count
    return found


def read_checkpoint(name):
    """Every array of every tensor, put together from its slices, and the training state."""
    folder = f"{FOLDER}/checkpoints/{name}"
    with open(f"{folder}/manifest.json") as file:
        manifest = json.load(file)
    files = [open(f"{folder}/{entry['name']}", "rb").read() for entry in manifest["files"]]
    arrays, covered = {}, {}
    for entry in manifest["slices"]:
        width, data, key = WIDTH[entry["dtype"]], files[entry["file"]], (entry["tensor"], entry["part"])
        whole, at = arrays.setdefault(key, bytearray()), entry["offset"]
        for first, count in places(entry):
            whole.extend(bytes(max(0, (first + count) * width - len(whole))))
            whole[first * width:(first + count) * width] = data[at:at + count * width]
            at += count * width
        covered[key] = covered.get(key, 0) + entry["count"] * width
    for key, whole in arrays.items():
        assert covered[key] == len(whole), f"{name}: {key} has {covered[key]} bytes in slices, and {len(whole)}"
    return arrays, manifest["state"]


def read_hub(folder):
    with open(f"{folder}/model.safetensors", "rb") as file:
        data = file.read()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    return {name: data[8 + size:][entry["data_offsets"][0]:entry["data_offsets"][1]]
            for name, entry in header.items() if name != "__metadata__"}


def same_arrays(one, other, what, parts=None):
    chosen = {key for key in one if parts is None or key[1] in parts}
    assert chosen and chosen <= other.keys(), f"{what}: {sorted(chosen - other.keys())[:3]} missing"
    for key in sorted(chosen):
        assert one[key] == other[key], f"{what}: {key[1]} of {key[0]} has other bits"


def begin(name, policy, layout, tied="tied", steps=6, stop_at=3):
    """Trains stop_at steps and saves them as `name`."""
    out = f"{FOLDER}/{name}"
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    for path, text in ((f"{out}/config.json", config_text(tied)),
                       (f"{out}/recipe.yaml", layouts.recipe_text(steps, 8, "micro_batch: 2"))):
        with open(path, "w") as file:
            file.write(text)
    ranks, how = arguments(layout)
    layouts.launch(ranks, ["train", out, *how, policy, out, f"{out}/recipe.yaml", *([str(stop_at)] if stop_at else [])])
    result = layouts.Result(out)
    if stop_at:
        shutil.rmtree(f"{FOLDER}/checkpoints/{name}", ignore_errors=True)
        os.rename(f"{FOLDER}/checkpoints/stopped", f"{FOLDER}/checkpoints/{name}")
    return result


def resume(name, checkpoint, layout):
    out = f"{FOLDER}/{name}"
    os.makedirs(out, exist_ok=True)
    ranks, how = arguments(layout)
    layouts.launch(ranks, ["resume", out, *how, checkpoint])
    return layouts.Result(out)


def across(label, policy, chain, tied="tied"):
    """The first of the chain trains, each of the others loads what the one before saved."""
    name = f"{label}-0"
    begin(name, policy, chain[0], tied)
    arrays, state = read_checkpoint(name)
    assert state["run"]["k"] == 3 and any(any(whole) for key, whole in arrays.items() if key[1] == "v")
    weights = None
    for i, layout in enumerate(chain[1:], 1):
        before, name, out = name, f"{label}-{i}", f"{FOLDER}/{label}-{i}"
        os.makedirs(out, exist_ok=True)
        ranks, how = arguments(layout)
        layouts.launch(ranks, ["copy", out, *how, before, name])
        what = f"{policy}, {chain[i - 1]} to {layout}"
        other, other_state = read_checkpoint(name)
        same_arrays(arrays, other, what)
        assert len(arrays) == len(other)
        for key in state.keys() | other_state.keys():
            assert key in ("device",) or state[key] == other_state[key], f"{what}: {key} is another"
        exported = read_hub(f"{out}/hub")
        assert weights is None or weights == exported, f"{what}: the export differs"
        weights = exported
        if policy == "fp32-master":
            for tensor, values in exported.items():
                assert values == arrays[tensor, "weight"], f"{what}: {tensor} was exported as something else"
        came_back, _ = read_checkpoint(name + "-hub")
        parts = {"fp32-master": ("weight",), "fp32-split": ("weight", "weight.extra")}.get(policy, ())
        if parts:
            same_arrays(arrays, came_back, what + ", by the hub", parts)
        assert not any(any(whole) for key, whole in came_back.items() if key[1] in ("m", "v"))


def other_policies():
    """Loading with --policy: exact where it says so, and the same under every layout."""
    begin("wide", "fp32-master", "d2")
    arrays, _ = read_checkpoint("wide")
    found = []
    for i, layout in enumerate(POLICY_LAYOUTS):
        out = f"{FOLDER}/narrow-{i}"
        os.makedirs(out, exist_ok=True)
        ranks, how = arguments(layout)
        layouts.launch(ranks, ["copy", out, *how, "wide", f"narrow-{i}", "fp24-q8"])
        found.append(read_checkpoint(f"narrow-{i}")[0])
        same_arrays(found[0], found[-1], f"fp24-q8 under {layout}")
    heads = array.array("H", bytes(found[0]["model.norm.weight", "weight"]))
    values = array.array("f", bytes(arrays["model.norm.weight", "weight"]))
    for head, value in zip(heads, values):
        assert abs(struct.unpack("<f", struct.pack("<I", head << 16))[0] - value) <= abs(value) / 128


def goes_on(before, after, same):
    """Three steps under one layout, three under another, against six under the second."""
    label = f"{before}-{after}".replace(" ", "")
    whole = begin(f"whole-{label}", "fp32-master+compute=fp32", after, stop_at=0)
    first = begin(f"first-{label}", "fp32-master+compute=fp32", before)
    rest = resume(f"rest-{label}", f"first-{label}", after)
    steps = first.steps + rest.steps
    assert len(steps) == len(whole.steps) == 6
    for k, (one, other) in enumerate(zip(whole.steps, steps)):
        assert abs(one[0] - other[0]) <= 1e-5 * one[0], f"{before} to {after}: loss {k} is {other[0]}, wanted {one[0]}"
        assert not same or one == other, f"{before} to {after}: step {k} has other bits"
    for name, _ in whole.tensors if same else ():
        assert whole.weights[name].tobytes() == rest.weights[name].tobytes(), f"{name}: other bits"


POLICY_LAYOUTS = ["d2", "p2", "d2t2"]
GOES_ON = [("t2", "t2", True), ("p2", "p2", True), ("t2p2", "c2 zero2", False), ("d2", "d2t2", False), ("p2", "t4", False)]


def all_go_on():
    for before, after, same in GOES_ON:
        goes_on(before, after, same)


TESTS = {**{f"across_{label}": lambda label=label: across(label, *CHAINS[label]) for label in CHAINS},
         "guarded": lambda: across("guarded", "fp32-q8", ["t2 guarded", "d2 guarded", "t2p2", "t2 guarded"]),
         "across_untied": lambda: across("untied", "fp32-master", CHAIN[1], "untied"),
         "other_policies": other_policies,
         "goes_on_elsewhere": all_go_on}


def main():
    failed = []
    subprocess.run([layouts.PROGRAM, "data", f"{FOLDER}/data"], check=True, timeout=60)
    for name, test in TESTS.items():
        if (NAMES and not any(part in name for part in NAMES)) or (name == "guarded" and not layouts.HOOKS):
            continue
        try:
            test()
            print(f"[       OK ] {name}", flush=True)
        except (AssertionError, RuntimeError, subprocess.TimeoutExpired, OSError) as error:
            print(f"[   FAILED ] {name}\n{error}", flush=True)
            failed.append(name)
    if failed:
        print(f"files are in {FOLDER}")
    else:
        shutil.rmtree(FOLDER)
    return len(failed) > 0


if __name__ == "__main__":
    sys.exit(main())
