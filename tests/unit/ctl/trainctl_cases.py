#!/usr/bin/env python3
"""trainctl as its users type it, against the real control thread over an engine that trains nothing (fake_trainerd).

    trainctl_cases.py TRAINCTL FAKE_TRAINERD

Each case is a command line, its exit code, and what stdout and stderr must say; then some stories of more than one."""
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

TRAINCTL, FAKE = (os.path.abspath(path) for path in sys.argv[1:3])
failures = 0

# (words, exit code, parts of stdout, parts of stderr); no daemon is there
WITHOUT_DAEMON = [
    (["--version"], 0, ["trainctl "], []),
    (["--help"], 0, ["set-optimizer", "not built yet", "Exit:"], []),
    (["train", "--help"], 0, ["--lr", "--global-batch", "--checkpoint.every", "--follow"], []),
    (["checkpoint", "--help"], 0, ["checkpoint save", "checkpoint delete"], []),
    (["completion"], 0, ["complete -o filenames -F _trainctl trainctl", "--checkpoint.every", "set-optimizer"], []),
    (["--help", "audit"], 0, ["audit"], []),
    ([], 2, [], ["no command", "trainctl status"]),
    (["statsu"], 2, [], ['did you mean "status"']),
    (["checkpoint", "lod"], 2, [], ['"checkpoint load"']),
    (["checkpoint"], 2, [], ["save, load, list, verify, delete", "checkpoint --help"]),
    (["checkpont", "save"], 2, [], ["\"checkpoint save\""]),
    (["help"], 0, ["set-optimizer", "Exit:"], []),
    (["help", "train"], 0, ["--lr X", "constant|linear|cosine|wsd"], []),
    (["help", "checkpoint"], 0, ["checkpoint verify NAME"], []),
    (["help", "checkpoint", "save"], 0, ["checkpoint save [NAME]"], []),
    (["help", "trian"], 2, [], ["did you mean \"train\""]),
    (["runs", "--json"], 2, [], ["-o json"]),
    (["metrics", "run-1"], 2, [], ["metrics --help"]),
    (["data", "prepare"], 2, [], ["-o DIR"]),
    (["compare"], 2, [], ["--policies A,B"]),
    (["compare", "--help"], 0, ["RECIPE.yaml", "the recipe itself is needed all the same:\n  --data"], []),
    (["compare", "--policies", "bf16", "--data", "d", "--steps", "3"], 2, [], ["compare --policies A,B,… RECIPE.yaml"]),
    (["status", "--florb"], 2, [], ["no option --florb"]),
    (["train", "--data", "d", "--steps", "3", "--global-bach", "2"], 2, [], ["--global-batch"]),
    (["train", "--data", "d", "--every", "2"], 2, [], ["--checkpoint.every", "--evaluate.every"]),
    (["train"], 2, [], ["recipe or flags"]),
    (["train", "--data", "d", "--steps", "3", "--policy", "fp32-mastre"], 2, [], ["fp32-master"]),
    (["train", "--data", "d", "--steps", "three"], 2, [], ["steps"]),
    (["set-optimizer", "fp32-mastre"], 2, [], ["fp32-master"]),
    (["set-optimizer"], 2, [], ["nothing to set"]),
    (["set-optimizer", "--compute", "fp32"], 2, [], []),
    (["evaluate"], 2, [], ["evaluate DATA"]),
    (["evaluate", "a", "b"], 2, [], ['"b"']),
    (["-o", "xml", "status"], 2, [], ["table, json or csv"]),
    (["--timeout", "never", "status"], 2, [], ["--timeout"]),
    (["--timeout"], 2, [], ["needs a value"]),
    (["wait", "--state", "idel"], 2, [], ["idle"]),
    (["wait", "--step", "-1"], 2, [], ["--step"]),
    (["--connect", "tcp:localhost:1", "status"], 2, [], ["not built yet"]),
    (["--connect", "nowhere", "status"], 2, [], ["unix:PATH"]),
    (["--connect", "unix:/" + "x" * 120, "status"], 2, [], ["--listen unix:/"]),
    (["top"], 2, [], ["not built yet"]),
    (["plan"], 3, [], ["there is no trainerd", "trainctl plan CONFIG --ranks"]),
    (["plan", "somewhere"], 2, [], ["--ranks N"]),
    (["set-layout"], 2, [], ["LAYOUT"]),
    (["set-layout", "d2", "--zero", "4"], 2, [], ["--zero"]),
    (["generate", "x"], 2, [], ["not built yet"]),
    (["forward-backward", "x"], 2, [], ["not built yet"]),
    (["optim-step"], 2, [], ["not built yet"]),
    (["zero-grad"], 2, [], ["not built yet"]),
    (["status"], 3, [], ["there is no trainerd at", "mpirun"]),
    (["shutdown"], 3, [], ["there is no trainerd"]),
    (["--timeout", "0.2", "wait"], 4, [], ["within 0.2 s"]),
    (["runs"], 0, ["started"], []),
    (["metrics"], 1, [], ["no run yet"]),
    (["schedule", "--steps", "4", "--lr", "1e-3", "--kind", "constant"], 0, ["0.001"], ["N = 4"]),
    (["schedule", "--lr", "1e-3"], 2, [], ["--steps"]),
    (["schedule", "nothing.yaml"], 1, [], ["nothing.yaml"]),
]

# with a daemon that has a model, none of it changing anything
WITH_DAEMON = [
    (["status"], 0, ["state     idle", "fp32-master"], []),
    (["pause"], 1, [], ["pause is not possible while the daemon is idle", "running"]),
    (["set-optimizer", "bf16"], 1, [], ["--yes"]),
    (["set-optimizer", "bf16", "--dry-run"], 0, ["before    12 bytes", "after     6 bytes"], ["warning"]),
    (["set-optimizer", "bf16-kahan", "--dry-run"], 0, ["12 bytes", "8 bytes"], []),
    (["set-optimizer", "fp32-master", "--dry-run"], 0, ["stays     the stored state"], ["nothing was changed"]),
    (["set-optimizer", "--lr", "3e-4", "--beta2=0.99"], 0, ["lr        0.0001 → 0.0003", "beta2     0.999 → 0.99"], []),
    (["set-layout", "d4", "--dry-run"], 0, ["d2t1p1c1, ZeRO 3 → d4, ZeRO 3", "moves     1.0 MB"], ["nothing was changed"]),
    (["set-layout", "d4", "--zero", "1"], 0, ["d2t1p1c1, ZeRO 3 → d4, ZeRO 1", "moved     1.0 MB", "0.25 s"], []),
    (["set-optimizer", "fp32-master", "--lr", "3e-4", "--decay-all"], 0, ["lr        0.0003, as it was", "decay     matrices → all"], []),
    (["audit"], 0, ["weight", "sum of the rows 6000 bytes"], []),
    (["-o", "csv", "audit"], 0, ["rank,tensor,kind,dtype,elements,bytes", "0,w,m,bf16,1000,2000"], []),
    (["evaluate", "data"], 0, ["1.25"], []),
    (["checkpoint", "list"], 0, ["name"], []),
    (["checkpoint", "save", "mine"], 0, ["mine"], ["saved"]),
    (["wait", "--state", "idle"], 0, [], []),
    (["schedule"], 1, [], ["no run"]),
    (["set-schedule", "--min-lr", "1e-6"], 1, [], ["idle"]),
    (["metrics", "--run", "none"], 1, [], ["nor any other", "trainctl train"]),
]


def run(*words, timeout=30):
    done = subprocess.run([TRAINCTL, *words], capture_output=True, text=True, timeout=timeout, check=False)
    return done.returncode, done.stdout, done.stderr


def check(good, what):
    global failures
    if not good:
        failures += 1
        print(f"FAILED {what}", flush=True)


def check_rows(rows):
    for words, code, out_parts, err_parts in rows:
        got, out, err = run(*words)
        said = f"trainctl {' '.join(words)}: exit {got}, wanted {code}\n{out}{err}"
        check(got == code, said)
        for part in out_parts:
            check(part in out, f"stdout lacks {part!r}: {said}")
        for part in err_parts:
            check(part in err, f"stderr lacks {part!r}: {said}")


def ask(*words):
    code, out, err = run("-o", "json", *words)
    check(code == 0, f"{words}: {code} {err}")
    return json.loads(out) if code == 0 else {}


def story_of_a_run(folder):
    """Train, look, steer, read it again in every form, and once more after the daemon is gone."""
    trained = ask("train", "--data", "d", "--steps", "40", "--lr", "1e-3")
    check(trained.get("steps") == 40, f"trained: {trained}")
    check(run("wait", "--step", "5")[0] == 0, "wait --step")
    ask("pause")
    status = ask("status")
    check(status["state"] == "paused" and status["step"] >= 5 and status["steps"] == 40, f"status: {status}")
    check(status["policy"]["bytes_per_parameter"] == 12, "policy is an object")
    code, out, _ = run("-o", "json", "schedule")
    check(code == 0 and len(json.loads(out)["rows"]) == 40, "schedule has a row a step")
    longer = ask("set-schedule", "--steps", "45", "--dry-run")
    check(longer["steps"] == 45 and longer["decay_steps"] == 45, f"set-schedule --steps: {longer}")
    code, _, err = run("set-schedule", "--steps", "2")
    check(code == 1 and "is not beyond" in err, f"steps that are past: {code} {err}")
    child = subprocess.Popen([TRAINCTL, "metrics", "--follow"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    check("is paused at step" in child.stderr.readline(), "following a paused run says that it is paused")
    child.terminate()
    child.communicate(timeout=30)
    ask("set-optimizer", "bf16", "--yes")
    ask("resume")
    check(run("wait", "--state", "idle")[0] == 0, "wait --state idle")
    check(run("wait", "--step", "100")[0] == 5, "a run that ended before the step is exit 5")
    steps = ask("metrics")
    check([s["step"] for s in steps] == list(range(1, 41)), "metrics has every step once")
    rows = list(csv.DictReader(io.StringIO(run("-o", "csv", "metrics", "--since", "39")[1])))
    check([r["step"] for r in rows] == ["39", "40"] and rows[0]["loss"] and rows[0]["grad_norm"] == "", f"csv: {rows}")
    return trained["run"]


def until_running():
    for _ in range(1000):
        status = ask("status")
        if status["state"] == "running" and status["step"] >= 3:
            return
        time.sleep(0.01)
    check(False, "the followed run does not begin")


def story_of_following():
    """--follow: every step as a JSON value a line, 0 for a run that was done, 5 for one that was stopped."""
    done = subprocess.run([TRAINCTL, "-o", "json", "train", "--data", "d", "--steps", "30", "--follow"],
                          capture_output=True, text=True, timeout=60, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    check(done.returncode == 0 and [l["step"] for l in lines] == list(range(1, 31)), f"follow: {done}")
    child = subprocess.Popen([TRAINCTL, "train", "--data", "d", "--steps", "100000", "--follow"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until_running()
    run("stop")
    _, err = child.communicate(timeout=30)
    check(child.returncode == 5 and "stopped" in err, f"a stopped run is exit 5: {child.returncode} {err}")
    child = subprocess.Popen([TRAINCTL, "train", "--data", "d", "--steps", "100000", "--follow"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until_running()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    check(child.returncode == 130 and "goes on" in err, f"Ctrl-C: {child.returncode} {err}")
    check(ask("status")["state"] == "running", "Ctrl-C left the run going")
    for words in (["wait"], ["wait", "--step", "100000"], ["wait", "--state", "failed"], ["metrics", "--follow"]):
        interrupted(words)
    child = subprocess.Popen([TRAINCTL, "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until_connected()
    check(child.poll() is None, "wait returns while a run is under way")
    ask("stop")
    _, err = child.communicate(timeout=30)
    check(child.returncode == 5 and "stopped" in err, f"wait for a run that was stopped: {child.returncode} {err}")


def until_connected(clients=2):
    """Two: the one that waits, and the one that asks for the status."""
    for _ in range(1000):
        if ask("status")["clients"] >= clients:
            return
        time.sleep(0.01)
    check(False, "the client does not connect")


def interrupted(words):
    """Ctrl-C leaves quietly: one line that says what goes on, 130."""
    child = subprocess.Popen([TRAINCTL, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until_connected()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    check(child.returncode == 130 and "goes on" in err and err.count("\n") == 1, f"Ctrl-C in {words}: {child.returncode} {err}")


def story_of_metrics(name):
    """What matches nothing says so; a run that is over is not followed for ever."""
    code, out, err = run("-o", "json", "metrics", "--run", name, "--since", "1000")
    check(code == 0 and json.loads(out) == [] and "its last is 40" in err, f"--since beyond the end: {code} {out} {err}")
    code, out, err = run("-o", "json", "metrics", "--run", name, "--follow")
    check(code == 0 and len(out.splitlines()) == 40 and "not under way" in err, f"--follow of a run that is over: {code} {err}")
    code, _, err = run("metrics", "--run", name + "x")
    check(code == 1 and f"did you mean {name}?" in err, f"a run's nearest name: {code} {err}")
    code, _, err = run("metrics", "--run", "nothing-like-it")
    check(code == 1 and "the latest is run-" in err, f"no such run: {code} {err}")
    folder = os.path.join("trainerd", "runs", name)
    with open(os.path.join(folder, "tensors.jsonl"), "w", encoding="utf-8") as lines:
        for step in range(1, 4):
            lines.write(json.dumps({"step": step, "tensors": {"a.norm": [0, 0, 1], "b.weight": [0.5, 0.25, 0.75]}}) + "\n")
    rows = ask("metrics", "--run", name, "--tensor", "*norm", "--since", "2")
    check([(r["step"], r["tensor"]) for r in rows] == [(2, "a.norm"), (3, "a.norm")], f"--tensor: {rows}")
    code, out, err = run("metrics", "--run", name, "--tensor", "zzz")
    check(code == 1 and not out and "no tensor" in err, f"a glob without a match: {code} {out} {err}")
    code, out, _ = run("-o", "json", "metrics", "--run", name, "--tensor", "*", "--follow")
    check(code == 0 and len(out.splitlines()) == 6, f"--tensor --follow of a run that is over: {code} {out}")


def story_of_a_picture(name):
    """plot --open where there is no desktop: the picture is written, a note says where, exit 0."""
    here = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    for environment in (here, {**here, "DISPLAY": ":77", "PATH": no_viewer()}):
        done = subprocess.run([TRAINCTL, "plot", "--run", name, "--out", "p.svg", "--open"], capture_output=True, text=True,
                              timeout=60, check=False, env=environment)
        check(done.returncode == 0 and os.path.getsize("p.svg") > 0 and done.stdout.strip().endswith("p.svg") and
              "p.svg" in done.stderr, f"plot --open without a desktop: {done}")
        os.remove("p.svg")


def no_viewer():
    """A PATH with gnuplot and without xdg-open."""
    os.makedirs("bin", exist_ok=True)
    if not os.path.exists("bin/gnuplot"):
        os.symlink(shutil.which("gnuplot"), "bin/gnuplot")
    return os.path.abspath("bin")


def story_of_a_run_cut_off():
    """Its events stand; following it ends; it is not called running by those who find no daemon."""
    folder = os.path.join("trainerd", "runs", "run-9")
    os.makedirs(folder)
    with open(os.path.join(folder, "run.json"), "w", encoding="utf-8") as text:
        json.dump({"run": "run-9", "state": "running", "step": 0, "steps": 50, "started": "2027-01-01T00:00:00Z"}, text)
    with open(os.path.join(folder, "events.jsonl"), "w", encoding="utf-8") as lines:
        for step in range(1, 6):
            lines.write(json.dumps({"event": "step", "run": "run-9", "step": step, "loss": 1 / step, "lr": 1e-3,
                                    "grad_norm": 1, "update_quality": 1, "policy": "fp32-master"}) + "\n")
        lines.write('{"run": "run-9", "st')
    last = ask("runs")["runs"][-1]
    check(last["state"] == "interrupted" and last["step"] == 5 and last["loss"] == 0.2, f"a run cut off: {last}")
    check([s["step"] for s in ask("metrics", "--run", "run-9")] == [1, 2, 3, 4, 5], "its events")
    for words in (["metrics", "--follow"], ["metrics", "--follow", "--tensor", "*"]):
        code, _, err = run(*words)
        check(code == 0 and "not under way" in err, f"{words} of a run cut off: {code} {err}")


def start_daemon(folder):
    daemon = subprocess.Popen([FAKE, "", "0.005"], stderr=subprocess.DEVNULL)
    check(run("--timeout", "20", "wait")[0] == 0, "wait connects first")
    return daemon


def main():
    with tempfile.TemporaryDirectory(prefix="trainctl-") as folder:
        os.chdir(folder)
        os.environ["XDG_STATE_HOME"] = folder
        os.environ.pop("TRAINERD_CONNECT", None)
        check_rows(WITHOUT_DAEMON)
        daemon = start_daemon(folder)
        check(run("status")[0] == 0, "status of an empty daemon")
        ask("init", "config.json", "--seed", "3")
        check_rows(WITH_DAEMON)
        name = story_of_a_run(folder)
        story_of_following()
        story_of_metrics(name)
        ask("shutdown")
        check(daemon.wait(20) == 0, "shutdown ends the daemon")
        check(run("status")[0] == 3, "and then there is none")
        check(len(ask("metrics", "--run", name)) == 40, "metrics outlive the daemon")
        check(len(ask("runs")["runs"]) == 4, "runs outlive the daemon")
        story_of_a_run_cut_off()
        story_of_a_picture("run-9")
    print(f"trainctl: {'all' if not failures else failures} cases {'passed' if not failures else 'FAILED'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
