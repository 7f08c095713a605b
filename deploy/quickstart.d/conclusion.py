#!/usr/bin/env python3
"""What the quickstart's table shows, from its numbers: conclusion.py TABLE.json [--short]

The finding is stated only where plain bf16 ends at twice fp32-master's loss or more, and the two runs that separate the
axes agree: bf16 weights alone do so too, bf16 moments alone do not.
"""
import json
import math
import sys

GAP = 2.0


def conclusion(rows, short):
    loss = {row["policy"]: math.inf if row["final_loss"] is None else row["final_loss"] for row in rows}
    lost = {row["policy"]: row["lost_update_share"] or 0 for row in rows}
    base = loss["fp32-master"]
    bf16, weights, moments = (loss[name] / base for name in ("bf16", "fp32-master+weight=bf16", "fp32-master+m=bf16+v=bf16"))
    if bf16 >= GAP and weights >= GAP and moments < GAP:
        return (f"bf16 stores weights and moments in 16 bits and ends at {bf16:.1f} times fp32-master's loss: {lost['bf16']:.0%} of its\n"
                "updates are rounded away (lost_update_share, update_quality), and nothing else would tell. The last two rows\n"
                f"separate the axes: it is the storage of the weights ({weights:.1f} times), not of the moments ({moments:.1f} times).")
    said = (f"bf16 ends at {bf16:.2f} times fp32-master's loss, with bf16 weights alone at {weights:.2f}, with bf16 moments alone\n"
            f"at {moments:.2f}: ")
    if short:
        return said + "this short run is too short to show what the whole one shows. Run it without --short."
    return said + "this run does not show the finding (bf16 and bf16 weights at 2 or more, moments below)."


def main():
    with open(sys.argv[1], encoding="utf-8") as table:
        print(conclusion(json.load(table), "--short" in sys.argv[2:]))


if __name__ == "__main__":
    main()
