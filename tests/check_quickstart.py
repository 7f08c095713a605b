#!/usr/bin/env python3
"""Looks at what a quickstart --layouts left: check_quickstart.py DIR [--short]. Without --short the finding itself is demanded."""
import json
import os
import subprocess
import sys

POLICIES = ["fp32-master", "fp24-q8", "bf16-kahan", "bf16", "fp32-master+weight=bf16", "fp32-master+m=bf16+v=bf16"]
FAULTS = ("bf16", "fp32-master+weight=bf16")  # those that keep plain bf16 weights


def main():
    folder, short = sys.argv[1], "--short" in sys.argv
    wrong = []
    for name, begin in (("table.png", b"\x89PNG"), ("rescue.png", b"\x89PNG"), ("table.svg", b"<?xml"), ("table.csv", b"policy,")):
        path = os.path.join(folder, name)
        data = open(path, "rb").read() if os.path.exists(path) else b""
        if not data.startswith(begin):
            wrong.append(f"{name} is missing or not what it says")
    rows = json.load(open(os.path.join(folder, "table.json"), encoding="utf-8"))
    if [row["policy"] for row in rows] != POLICIES:
        wrong.append(f"the rows are {[row['policy'] for row in rows]}")
    for row in rows:
        if len(row["losses"]) != (20 if short else 220):
            wrong.append(f"{row['policy']}: {len(row['losses'])} losses")
        fault = row["policy"] in FAULTS
        if not short and fault and row["ratio"] < 2:
            wrong.append(f"{row['policy']}: ratio {row['ratio']:.2f}, wanted 2 or more")
        if not short and not fault and row["ratio"] > 1.1:
            wrong.append(f"{row['policy']}: ratio {row['ratio']:.2f}, wanted 1.1 or less")
        if (row["update_quality"] < 0.95) != fault:
            wrong.append(f"{row['policy']}: update_quality {row['update_quality']:.3f}")
    layouts = os.path.join(folder, "layouts.json")
    if os.path.exists(layouts):
        rows = json.load(open(layouts, encoding="utf-8"))
        if [row["layout"] for row in rows] != ["d8", "d8", "d4c2", "d4t2", "d4p2", "d8"] or not os.path.exists(os.path.join(folder, "layouts.png")):
            wrong.append(f"the seed's rows are {[row['layout'] for row in rows]}")
        for row in rows:
            ratio, fault = row["final_loss"] / rows[0]["final_loss"], row["policy"] == "bf16"
            if not short and (ratio < 2 if fault else abs(ratio - 1) > 0.1):
                wrong.append(f"{row['layout']} under {row['policy']}: {ratio:.2f} times the first row's loss")
            if short and not fault and abs(ratio - 1) > 1e-2:
                wrong.append(f"{row['layout']}: layouts part within 20 steps, {ratio:.4f}")
    else:
        wrong.append("layouts.json is missing")
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "deploy", "quickstart.d", "conclusion.py")
    said = subprocess.run([sys.executable, script, os.path.join(folder, "table.json"), *sys.argv[2:]], check=True,
                          capture_output=True, text=True).stdout
    if ("it is the storage of the weights" in said) == short or ("too short" in said) != short:
        wrong.append(f"the conclusion: {said}")
    for name in ("pretrain", "fine-tune", "rescue"):
        with open(os.path.join(folder, name + ".yaml"), encoding="utf-8") as recipe:
            if f'data: "{os.path.abspath(folder)}/' not in recipe.read():
                wrong.append(f"{name}.yaml does not name its data from the root")
    print("\n".join(wrong) or "as it should be")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
