#!/usr/bin/env python3
"""set-layout moves every bit: see ranks_relayout.c. A line a case.

    relayout.py RANKS_TRAIN RANKS_RELAYOUT [--hooks] [NAME…]
"""
import json
import os
import shutil
import subprocess
import sys

import layouts  # which reads RANKS_TRAIN from the same place, and made the folder

PROGRAM = os.path.abspath(sys.argv[2])
HOOKS = "--hooks" in sys.argv
NAMES = [word for word in sys.argv[3:] if word != "--hooks"]
FOLDER = layouts.FOLDER
ALL = ("fp32-master", "fp32-lean", "fp32-q8", "fp24-q8", "bf16-kahan", "bf16-sr", "bf16", "fp32-split")
SOME = ("fp24-q8", "bf16-kahan", "fp32-split")

# Name: from and its ZeRO stage, to and its, policies, what else.
CASES = {
    "d2_to_c2": ("d2", 3, "c2", 3, ALL, {}),
    "d4_to_c2_zero_1": ("d4", 3, "d2c2", 1, SOME, {}),
    "c4_to_d4_zero_2_lanes": ("c4", 1, "d4", 2, SOME, {"lanes": 8}),
    "d4_zero_1_to_2": ("d4", 1, "d4", 2, ("fp32-master",), {"evaluate": True}),
    "c2_to_d2_idle": ("c2", 3, "d2", 3, SOME, {"steps": 2}),
    "d2_to_p2": ("d2", 3, "p2", 1, ALL, {}),
    "p2_to_d2_untied": ("p2", 3, "d2", 2, ALL, {"tied": "untied"}),
    "d4_to_d2p2_lanes": ("d4", 3, "d2p2", 1, SOME, {"lanes": 8, "evaluate": True}),
    "d2p2_to_c4": ("d2p2", 1, "c4", 1, SOME, {}),
    "d2p2_to_c2p2_idle": ("d2p2", 1, "c2p2", 3, SOME, {"steps": 2}),
    "d2_to_t2": ("d2", 3, "t2", 1, tuple(p for p in ALL if "q8" not in p), {}),
    "d2_to_t2_groups": ("d2", 3, "t2", 1, ("fp32-q8", "fp24-q8"), {"wide": True}),
    "t2_to_d2_untied": ("t2", 3, "d2", 2, SOME, {"tied": "untied", "wide": True}),
    "d4_to_d2t2": ("d4", 3, "d2t2", 3, SOME, {"wide": True, "evaluate": True}),
    "t4_to_d4_idle": ("t4", 3, "d4", 3, SOME, {"wide": True, "steps": 2}),
    "d2t2_to_t2c2_lanes": ("d2t2", 1, "t2c2", 2, SOME, {"wide": True, "lanes": 4}),
    "t2p2_to_t4": ("t2p2", 1, "t4", 3, SOME, {"wide": True}),
    "d2t2p2_to_t4c2": ("d2t2p2", 1, "t4c2", 3, SOME, {"wide": True}),
    "guarded_t2_to_p2": ("t2", 3, "p2", 1, SOME, {"wide": True, "device": "guarded"}),
    "guarded_d2_to_p2": ("d2", 3, "p2", 1, SOME, {"device": "guarded"}),
    "guarded_d2_to_c2": ("d2", 3, "c2", 1, SOME, {"device": "guarded"}),
}
# Each bug, injected in builds with test hooks, and the case that must catch it.
INJECTED = {"runs-swapped": "d4_to_d2t2"}


def launch(name, bug=None):
    """The exit status and what was said."""
    before, zero_before, after, zero_after, policies, more = CASES[name]
    out = f"{FOLDER}/{name}"
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    recipe = layouts.recipe_text(more.get("steps", 6), 13, "micro_batch: 2")
    if more.get("evaluate"):
        recipe += f"evaluate: {{data: {FOLDER}/data, every: 2}}\n"
    config = json.loads(layouts.config_text(more.get("tied", "tied")))
    if more.get("wide"):  # whole groups of q8 in every piece of columns
        config.update(hidden_size=32, intermediate_size=128, head_dim=32)
    for file, text in (("config.json", json.dumps(config)), ("recipe.yaml", recipe)):
        with open(f"{out}/{file}", "w") as written:
            written.write(text)
    done = subprocess.run(["mpirun", "-n", str(layouts.ranks_of(before)), PROGRAM, out, f"{out}/config.json", f"{out}/recipe.yaml",
                           more.get("device", "cpu"), str(more.get("lanes", 0)), before, str(zero_before), after, str(zero_after),
                           *policies], env={**layouts.environment(), **({"TRAINERD_INJECT": bug} if bug else {})},
                          timeout=300, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode, done.stderr


def report(name, good, why=""):
    print(f"[ {'      OK' if good else '  FAILED'} ] {name}\n{'' if good else why[-3000:]}", end="", flush=True)
    return good


def main():
    subprocess.run([layouts.PROGRAM, "data", f"{FOLDER}/data"], check=True, timeout=60)
    good = True
    for name in CASES:
        if (NAMES and not any(part in name for part in NAMES)) or ("guarded" in name and not HOOKS):
            continue
        status, said = launch(name)
        good &= report(name, status == 0, said)
    for bug, name in INJECTED.items() if HOOKS else ():
        if NAMES and not any(part in name for part in NAMES):
            continue
        status, said = launch(name, bug)
        caught = status != 0 and "differ" in said
        good &= report(f"{bug}_is_caught_by_{name}", caught, f"the injected bug {bug} was not caught\n{said}")
    if good:
        shutil.rmtree(FOLDER)
    else:
        print(f"files are in {FOLDER}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
