#!/usr/bin/env python3
"""The seed's six rows, by the seed's recipe, on one daemon of eight ranks: layouts.py TRAINCTL RECIPE OUT

The daemon holds a checkpoint named `pretrained`. For every row it is loaded, the live daemon moves to the row's layout, and the
recipe is trained there. Writes OUT/layouts.json and OUT/layouts.png, and prints the table.
"""
import json
import os
import subprocess
import sys

# What the seed ran, and how to say it here: layout, ZeRO stage, policy; and the final loss that the seed reports.
ROWS = (("LLaMA-Factory, DeepSpeed ZeRO-3", "d8", 3, "fp32-master", 0.0464),
        ("Megatron d8t1p1c1", "d8", 1, "fp32-master", 0.0480),
        ("Megatron d4t1p1c2", "d4c2", 1, "fp32-master", 0.0467),
        ("Megatron d4t2p1c1", "d4t2", 1, "fp32-master", 0.0466),
        ("Megatron d4t1p2c1", "d4p2", 1, "fp32-master", 0.0470),
        ("FSDP d8p1t1, AdamW in bf16", "d8", 3, "bf16", 0.1309))
LAST = 10  # the final loss is the mean of so many steps


def main():
    trainctl, recipe, out = sys.argv[1:4]

    def ctl(*words):
        done = subprocess.run([trainctl, "-o", "json", *words], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"layouts: trainctl {' '.join(words)} ended with {done.returncode}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    rows = []
    for system, layout, zero, policy, seeds in ROWS:
        print(f"   {system}: --layout {layout} --zero {zero} --policy {policy}", file=sys.stderr)
        ctl("checkpoint", "load", "pretrained")
        ctl("set-layout", layout, "--zero", str(zero))
        run = ctl("train", recipe, "--policy", policy, "--yes")["run"]
        ctl("wait")
        losses = [event["loss"] for event in ctl("metrics", "--run", run)]
        ranks = {}
        for row in ctl("audit")["rows"]:
            ranks[row["rank"]] = ranks.get(row["rank"], 0) + row["bytes"]
        rows.append({"system": system, "layout": layout, "zero": zero, "policy": policy, "run": run, "memory_bytes": max(ranks.values()),
                     "final_loss": sum(losses[-LAST:]) / len(losses[-LAST:]), "seeds_final_loss": seeds})
    with open(os.path.join(out, "layouts.json"), "w", encoding="utf-8") as file:
        json.dump(rows, file, indent=1)
    print("| in the seed | here | policy | final loss | ratio | in the seed | ratio |\n| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['system']} | `--layout {row['layout']} --zero {row['zero']}` | `{row['policy']}` | {row['final_loss']:.4f} | "
              f"{row['final_loss'] / rows[0]['final_loss']:.2f} | {row['seeds_final_loss']:.4f} | {row['seeds_final_loss'] / ROWS[0][4]:.2f} |")
    ctl("plot", "--run", ",".join(row["run"] for row in rows), "--title", "the seed's six rows", "--out", os.path.join(out, "layouts.png"))


if __name__ == "__main__":
    main()
