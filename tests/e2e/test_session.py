"""A new user's session: every command once, with -o json, and what each promises."""
import os

from bounds import bounded
from harness import need, until


@bounded(180)
def test_every_command(world):
    world.dataset()
    world.dataset(rows=16, seed=2, name="held-out")
    shown = world.ctl("data", "show", world.path("data")).out
    need("say 0" in shown or "say" in shown, "data show prints no sample")
    world.start(2)
    status = world.status()
    need(status["state"] == "idle" and status["ranks"] == 2, f"status says {status['state']}, {status['ranks']} ranks")
    need(status["parameters"] > 0 and status["policy"]["name"] == "fp32-master", "status names no model or policy")

    audit = world.json("audit")
    need(audit["bytes_total"] == audit["bytes_allocated"], f"audit: {audit['bytes_total']} of {audit['bytes_allocated']}")
    need(sum(row["bytes"] for row in audit["rows"]) == audit["bytes_total"], "audit's rows do not add up")

    recipe = world.recipe(evaluate={"data": world.path("held-out"), "every": 6})
    world.json("schedule", recipe, code=None)
    events = world.train(recipe)
    need([e["step"] for e in events] == list(range(1, 13)), f"steps are {[e['step'] for e in events]}")
    need(events[-1]["loss"] < events[0]["loss"], "the loss did not fall")
    need(all(e["lost_update_share"] == 0 and e["update_quality"] == 1 for e in events), "fp32-master lost updates")
    need(events[0]["lr"] == 0, "the first update of a warm-up from 0 has lr 0")

    loss = world.json("evaluate", world.path("held-out"))["loss"]
    need(0 < loss < 10, f"evaluate says {loss}")
    runs = world.json("runs")
    runs = runs["runs"] if isinstance(runs, dict) else runs
    need(len(runs) == 1 and runs[0]["step"] == 12, f"runs says {runs}")

    saved = world.json("checkpoint", "save", "by-hand")
    need("by-hand" in saved["path"], f"saved {saved}")
    names = [row["name"] for row in world.json("checkpoint", "list")["checkpoints"]]
    need("by-hand" in names, f"list says {names}")
    verified = world.json("checkpoint", "verify", "by-hand")
    need(verified["verified"] is True and verified["name"] == "by-hand" and "bytes" not in verified, f"verify says {verified}")
    world.json("set-optimizer", "bf16-kahan", "--dry-run")
    need(world.status()["policy"]["name"] == "fp32-master", "a dry run changed the policy")
    world.json("set-optimizer", "bf16-kahan")
    need(world.status()["policy"]["name"] == "bf16-kahan", "set-optimizer changed nothing")
    loaded = world.json("checkpoint", "load", "by-hand")
    need(loaded["loaded"] is True and loaded["name"] == "by-hand", f"load says {loaded}")
    need(world.status()["policy"]["name"] == "fp32-master", "checkpoint load keeps the checkpoint's policy")
    deleted = world.json("checkpoint", "delete", "by-hand")
    need(deleted["deleted"] is True and deleted["name"] == "by-hand", f"delete says {deleted}")

    world.json("export", world.path("hub"), "--dtype", "bf16")
    need(os.path.exists(world.path("hub", "config.json")), "export writes no config.json")
    world.json("load", world.path("hub"))
    world.json("init", world.path("model", "config.json"), "--seed", "7")
    world.json("doctor", timeout=120)
    world.json("shutdown")
    need(world.daemons[-1].wait_end(20) == 0, "shutdown did not end with 0")
    world.ctl("status", code=3)  # no daemon there


@bounded(120)
def test_json_is_one_value(world):
    """-o json: one JSON value on stdout, one a line when following; refusals leave stdout empty and say it on stderr."""
    world.dataset()
    world.start(1)
    recipe, long = world.recipe(), world.recipe("long.yaml", steps=100000)
    for words in (("status",), ("wait",), ("audit",), ("data", "prepare", world.path("data.jsonl"), "-o", world.path("again")),
                  ("data", "show", world.path("data")), ("export", world.path("hub")), ("load", world.path("hub")),
                  ("init", world.path("model", "config.json")), ("schedule", recipe), ("evaluate", world.path("data")),
                  ("train", recipe), ("wait",), ("runs",), ("metrics",), ("metrics", "--since", "1000"),
                  ("metrics", "--tensor", "*norm*"), ("plot", "--out", world.path("p.svg")), ("checkpoint", "save", "mine"),
                  ("checkpoint", "list"), ("checkpoint", "verify", "mine"), ("checkpoint", "load", "mine"),
                  ("checkpoint", "delete", "mine"), ("compare", "--policies", "fp32-master,bf16", recipe), ("train", long),
                  ("pause",), ("set-optimizer", "bf16-kahan"), ("set-optimizer", "--lr", "1e-4"), ("set-schedule", "--min-lr", "1e-6"),
                  ("set-schedule", "--steps", "90000", "--dry-run"), ("schedule",), ("resume",), ("stop",), ("doctor", "--quick")):
        world.json(*words, timeout=60)
    for words in (("train", recipe, "--follow"), ("metrics", "--follow"), ("metrics", "--follow", "--tensor", "*q_norm*")):
        lines = world.ctl(*words, json_out=True).lines()
        need(len(lines) >= 12 and all("step" in line for line in lines), f"{words}: {len(lines)} lines")
    for words, code in ((("train", "none.yaml"), 1), (("pause",), 1), (("checkpoint", "load", "none"), 1), (("metrics", "--run", "none"), 1),
                        (("set-optimizer", "none"), 2), (("nonsense",), 2), (("--timeout", "0.2", "wait", "--state", "failed"), 4)):
        need(not world.refused(*words, code=code, json_out=True).out, f"{words}: a refusal prints data")
    world.json("shutdown")


@bounded(120)
def test_steering_a_run(world):
    world.dataset()
    world.start(2)
    recipe = world.recipe(steps=100000)
    run = world.json("train", recipe)["run"]
    need(run, "train names no run")
    world.ctl("wait", "--step", "3", timeout=60)
    world.refused("train", recipe, says=("running",))  # illegal in this state, and the sentence names it
    world.json("pause")
    until(lambda: world.status()["state"] == "paused", 20, "paused")
    at = world.status()["step"]
    need(world.status()["step"] == at, "a paused run goes on")
    world.json("set-schedule", "--min-lr", "1e-5")
    world.json("set-optimizer", "fp24-q8", "--at-step", str(at + 20))  # while it stands still: a step takes a millisecond
    world.json("resume")
    world.ctl("wait", "--step", str(at + 22), timeout=60)
    need(world.status()["policy"]["name"] == "fp24-q8", "the swap at a step did not happen")
    policies = {event["step"]: event["policy"] for event in world.events()}
    need(policies[at + 20] != policies[at + 21], f"swapped elsewhere than after step {at + 20}: {policies.get(at + 20)}")
    world.json("stop")
    until(lambda: world.status()["state"] == "idle", 20, "idle after stop")
    need(world.json("checkpoint", "list")["checkpoints"], "stop saved no checkpoint")


@bounded(120)
def test_wait(world):
    world.dataset()
    world.start(1)
    world.ctl("--timeout", "2", "wait", "--state", "running", code=4)
    world.ctl("wait")  # idle: nothing is under way
    run = world.json("train", world.recipe())["run"]
    status = world.json("wait", timeout=60)
    need(status["state"] == "idle", f"wait returned while {status['state']}")
    need([row["state"] for row in world.json("runs")["runs"] if row["run"] == run] == ["done"], "wait returned before the end")
    world.ctl("train", world.recipe(steps=100000))
    world.ctl("--timeout", "0.5", "wait", code=4)
    world.ctl("pause")
    need(world.json("wait")["state"] == "paused", "a paused run is not under way")
    world.ctl("stop")


@bounded(60)
def test_waiting_for_a_run_that_fails(world):
    """Ten skips in a row: exit 5, the run and where it ended are named; the next train clears it."""
    world.dataset()
    daemon = world.start(1)
    recipe = world.recipe(steps=200, optimizer={"lr": 1e6, "clip": 0}, schedule={"kind": "constant"})
    run = world.json("train", recipe)["run"]
    for words in (("wait",), ("wait", "--state", "idle"), ("wait", "--step", "150")):
        result = world.refused(*words, code=5, says=(run, "skipped"))
    need(world.status()["state"] == "failed", "it did not fail")
    row = world.json("runs")["runs"][-1]
    failure = world.status()["failure"]
    need(f"{run} failed at step {row['step']} of 200" in failure and "on rank 0 in model." in failure, f"status says: {failure}")
    need(f" error rank=0 step={row['step']} run: {failure}\n" in daemon.said(), f"no line on stderr: {daemon.said()[-600:]}")
    need(row["state"] == "failed" and f"step {row['step']} of 200" in world.ctl("wait", code=5).err, f"{row}: {result.err}")
    world.ctl("init", world.path("model", "config.json"))
    world.train(world.recipe())
    world.ctl("wait")


@bounded(120)
def test_waiting_for_a_start(world):
    """While the newest checkpoint is being loaded the daemon is busy, never empty, and wait waits for it."""
    world.dataset()
    world.config(hidden_size=256, intermediate_size=1024, num_hidden_layers=6, head_dim=64)
    daemon = world.start(2, "--init", world.path("model", "config.json"), init=False)
    world.ctl("checkpoint", "save", "whole")
    world.ctl("shutdown")
    daemon.wait_end(30)
    again = world.start(2, init=False, wait=False)
    status = world.json("wait", daemon=again)
    need(status["state"] == "idle" and status["parameters"] > 0, f"wait returned while {status['state']}: {status['activity']}")
    again.wait_ready()
    world.ctl("shutdown")
    again.wait_end(30)
    third, seen = world.start(2, init=False, wait=False), set()
    while "idle" not in seen:
        result = world.ctl("status", json_out=True, code=None, daemon=third)
        if result.code == 0:
            seen.add(result.json()["state"])
        need(result.code in (0, 1, 3), f"status ended with {result.code}")
    need(seen <= {"busy", "idle"}, f"states while it starts: {seen}")
    world.ctl("shutdown", daemon=third)
    third.wait_end(30)
    for _ in range(5):  # once it says that it is ready, it is
        small = world.start(1, state="small")
        status = world.status()
        need(status["state"] == "idle", f"{status['state']} ({status['activity']}) after it said that it is ready")
        small.end()


@bounded(90)
def test_the_length_of_a_run(world):
    """set-schedule --steps: absolute, beyond the present; the decay ends with the run as before; also across a checkpoint."""
    world.dataset()
    world.start(1)
    for length in ({"steps": 100000}, {"steps": None, "epochs": 10000}):
        world.ctl("train", world.recipe(schedule={"kind": "cosine", "warmup_steps": 4}, **length))
        world.ctl("wait", "--step", "10", timeout=60)
        world.ctl("pause")
        at = world.status()["step"]
        world.refused("set-schedule", "--steps", str(at), says=(f"{at} steps",))
        world.refused("set-schedule", "--steps", "soon", code=2)
        planned = world.json("set-schedule", "--steps", str(at + 20), "--dry-run")
        need(planned["steps"] == at + 20 and world.status()["steps"] > at + 20, f"a dry run changed the length: {planned}")
        changed = world.json("set-schedule", "--steps", str(at + 20), "--min-lr", "1e-5")
        need(changed["steps"] == changed["decay_steps"] == at + 20 and changed["warmup_steps"] == 4, f"set-schedule says {changed}")
        need(world.json("schedule")["rows"][-1]["step"] == at + 19, "schedule shows another length")
        world.json("checkpoint", "save", "shorter")
        world.json("checkpoint", "load", "shorter")
        world.ctl("resume")
        world.ctl("wait", timeout=60)
        need(world.events()[-1]["step"] == at + 20, f"ended at step {world.events()[-1]['step']}, wanted {at + 20}")
        need(world.json("runs")["runs"][-1]["state"] == "done", "it reached its end and is not done")
        world.json("checkpoint", "delete", "shorter")


@bounded(90)
def test_steering_while_checkpoints_are_saved(world):
    """A run that saves is busy for a moment, and what is asked for then waits its turn instead of being refused."""
    world.dataset()
    world.start(1)
    world.ctl("train", world.recipe(steps=100000, checkpoint={"every": 1, "keep": 2}))
    for number in range(8):
        world.ctl("set-schedule", "--min-lr", f"{number}e-6")
        world.ctl("set-optimizer", "--weight-decay", f"0.0{number}")
    world.ctl("pause")
    need(world.json("schedule")["min_lr"] == 7e-6, "the last schedule is not the one that holds")
    world.ctl("stop")


@bounded(120)
def test_one_command_for_batch_systems(world):
    """--run: train, save, exit 0; a run that stops short of its target exits 5."""
    world.dataset()
    daemon = world.start(2, "--run", world.recipe(), wait=False)
    need(daemon.wait_end(60) == 0, f"--run ended with {daemon.process.returncode}")
    again = world.start(2, init=False)
    listed = world.json("checkpoint", "list")["checkpoints"]
    need(listed and listed[-1]["step"] == 12, f"--run left {listed}")
    status = world.status()  # its run is done, so there is none to resume
    need(status["state"] == "idle" and status["total_steps"] == 12, f"came back {status['state']} after {status['total_steps']} updates")
    need(again.process.poll() is None, "it ended")


@bounded(60)
def test_csv_and_tables(world):
    world.dataset()
    world.start(1)
    world.train(world.recipe())
    lines = world.ctl("-o", "csv", "metrics").out.splitlines()
    need(lines[0].startswith("run,step"), f"csv begins with {lines[0]!r}")
    need(len(lines) == 13, f"{len(lines)} lines of csv")
    need("fp32-master" in world.ctl("status").out, "status as a table names no policy")


@bounded(300)
def test_commands_within_a_long_step(world):
    """What changes nothing is done between two micro-batches, and leaves no trace in the step's bits; a pause waits for the
    step's end, which status and who waits are told."""
    small, large = world.dataset(rows=30, name="small"), world.dataset(rows=3600, name="large")
    recipe = world.recipe(data=large, steps=3, global_batch=3600, max_tokens=None, micro_batch=1)
    world.start(2, state="undisturbed")
    alone = world.train(recipe, timeout=120)
    world.ctl("shutdown")
    world.start(2, state="disturbed")
    world.ctl("train", recipe)

    def within(n):
        status = world.status()
        return status["step"] == n and 0 < status["micro_batch"] < status["micro_batches"]
    until(lambda: within(0), 30, "micro-batches of the first step in status")
    world.json("evaluate", small)
    world.ctl("export", world.path("exported"))
    need(within(0), "evaluate and export waited for the end of the step")
    until(lambda: within(1), 60, "micro-batches of the second step in status")
    pause = world.spawn("pause")
    until(lambda: world.status()["waiting"] == "pause", 10, "status names the pause that waits")
    _, err = pause.communicate(timeout=60)
    status = world.status()
    need(pause.returncode == 0 and status["state"] == "paused" and status["waiting"] == "", f"after the pause: {status}")
    need(status["step"] in (2, 3) and status["micro_batches"] == 0, f"the pause came within a step: {status}")
    need("waits" not in err or "micro-batches are done" in err, f"pause said {err}")
    if status["step"] < 3:
        world.ctl("resume")
        world.ctl("wait", "--state", "idle", timeout=90)
    disturbed = world.events()
    for key in ("loss", "grad_norm", "update_quality"):
        need([e[key] for e in disturbed] == [e[key] for e in alone], f"{key} differs: {disturbed} against {alone}")
