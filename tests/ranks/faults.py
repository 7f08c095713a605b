#!/usr/bin/env python3
"""All ranks or none, with one rank's allocations, files and syncs failing in turn: see ranks_faults.c.

    faults.py RANKS_TRAIN RANKS_FAULTS
"""
import os
import shutil
import subprocess
import sys

import layouts  # which reads RANKS_TRAIN from the same place, and made the folder


def main():
    folder = layouts.FOLDER
    for name, text in (("config.json", layouts.config_text("tied")),
                       ("recipe.yaml", layouts.recipe_text(6, 13, "micro_batch: 2")
                        + f"evaluate: {{data: {folder}/data, every: 2}}\n")):
        with open(f"{folder}/{name}", "w") as file:
            file.write(text)
    os.makedirs(f"{folder}/state")
    subprocess.run([layouts.PROGRAM, "data", f"{folder}/data"], check=True, timeout=60)
    subprocess.run([layouts.PROGRAM, "data", f"{folder}/other", "other"], check=True, timeout=60)
    done = subprocess.run(["mpirun", "-n", "2", os.path.abspath(sys.argv[2]), f"{folder}/state", f"{folder}/data",
                           f"{folder}/config.json", f"{folder}/recipe.yaml", f"{folder}/other"], env=layouts.environment(), timeout=800,
                          stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        print(f"exit {done.returncode}; files are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
