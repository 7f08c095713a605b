#!/usr/bin/env python3
"""Messages between two ranks arrive whole: see ranks_comm.c. A line a case.

    comm.py RANKS_COMM [--hooks]
"""
import subprocess
import sys

import layouts  # for its environment; the folder it makes is not used


def main():
    failed = False
    for device in ("cpu", "guarded") if layouts.HOOKS else ("cpu",):
        for ranks in (2, 3):
            done = subprocess.run(["mpirun", "-n", str(ranks), layouts.PROGRAM, device], env=layouts.environment(), timeout=120,
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True)
            good = done.returncode == 0
            failed |= not good
            print(f"[ {'      OK' if good else '  FAILED'} ] transfers_{device}_{ranks}\n{'' if good else done.stderr[-2000:]}", end="")
    layouts.shutil.rmtree(layouts.FOLDER)
    return failed


if __name__ == "__main__":
    sys.exit(main())
