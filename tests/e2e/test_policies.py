"""Policies: live swaps between all pairs, the measures that tell them apart, compare."""
import json
import re
import signal
import time

from bounds import bounded, long
from harness import POLICIES, need, until


@bounded(240)
def test_live_swaps_between_all_pairs(world):
    """One run walks over every ordered pair; the run goes on, the audit adds up, wider is exact."""
    world.dataset()
    world.start(2)
    world.ctl("train", world.recipe(steps=1000000), "--yes")
    world.ctl("wait", "--step", "3", timeout=60)
    for before in POLICIES:
        for after in POLICIES:
            if before == after:
                continue
            world.json("set-optimizer", before, "--yes")
            done = world.json("set-optimizer", after, "--yes")
            status = world.status()
            need(status["policy"]["name"] == after, f"{before} to {after}: status says {status['policy']['name']}")
            need(abs(done["bytes_per_parameter_after"] / status["policy"]["bytes_per_parameter"] - 1) < 0.01,
                 f"{before} to {after}: said {done['bytes_per_parameter_after']}, status {status['policy']['bytes_per_parameter']}")
            if after == "fp32-master":
                need(done["exact"], f"{before} to fp32-master is not exact")
    at = world.status()["step"]
    world.ctl("wait", "--step", str(at + 3), timeout=60)
    audit = world.json("audit")
    need(audit["bytes_total"] == audit["bytes_allocated"], "the audit does not add up after the swaps")
    last = world.events("--since", str(at))[-1]
    need(last["loss"] == last["loss"] and last["loss"] < 6, f"the loss is {last['loss']} after the swaps")


@bounded(90)
def test_a_recipe_that_names_a_policy(world):
    """It is converted to first, and what that loses is said; the id alone is on stdout."""
    world.dataset()
    world.start(2)
    recipe = world.recipe(optimizer={"policy": "bf16-kahan", "lr": 1e-3})
    trained = world.json("train", recipe)
    conversion = trained["conversion"]
    need((conversion["bytes_per_parameter_before"], conversion["bytes_per_parameter_after"]) == (12, 8), f"conversion: {trained}")
    need("converted from fp32-master to bf16-kahan" in trained["text"] and not conversion["exact"], f"text: {trained['text']}")
    world.ctl("wait", timeout=60)
    need(world.json("train", recipe)["conversion"] is None, "the same policy is a conversion")
    world.ctl("wait", timeout=60)
    said = world.ctl("train", world.recipe("back.yaml", optimizer={"policy": "fp32-master", "lr": 1e-3}))
    need(said.out.split() == ["run-0003"] and "8" in said.err and "nothing was lost" in said.err, f"{said.out} {said.err}")


@bounded(90)
def test_settings_alone(world):
    """Hyperparameters without a policy: old and new are said, nothing is converted; what would change nothing takes nothing."""
    world.dataset()
    world.start(2)
    world.ctl("train", world.recipe(steps=100000, schedule={"kind": "constant"}))
    world.ctl("pause")
    done = world.json("set-optimizer", "--lr", "1e-3", "--beta2", "0.99")
    need((done["settings_before"]["lr"], done["settings_after"]["lr"]) == (3e-3, 1e-3), f"lr: {done}")
    need((done["settings_before"]["beta2"], done["settings_after"]["beta2"]) == (0.999, 0.99), f"beta2: {done}")
    need(not done["converts"] and done["bytes_more"] == 0, f"settings alone convert: {done}")
    need("lr        0.001 → 0.002" in world.ctl("set-optimizer", "fp32-master", "--lr", "2e-3").out, "old → new is not printed")
    for policy, more in (("fp32-master", False), ("fp32-master+compute=fp32", True), ("bf16-kahan", True)):
        planned = world.json("set-optimizer", policy, "--dry-run")
        need((planned["bytes_more"] > 0) == more, f"{policy}: takes {planned['bytes_more']} bytes more")
        need(("peak" in world.ctl("set-optimizer", policy, "--dry-run").out) == more, f"{policy}: a peak is printed or not")
    world.refused("set-optimizer", "--lr", "0", says=("learning rate",))
    at = world.status()["step"]
    world.ctl("resume")
    world.ctl("wait", "--step", str(at + 2))
    need(world.events()[-1]["lr"] == 2e-3, "the new lr is not used")


@bounded(120)
def test_bytes_a_parameter(world):
    """The contract's column, measured from what is really allocated."""
    wanted = {"fp32-master": 12, "fp32-lean": 8, "fp32-q8": 6.125, "fp24-q8": 5.125, "fp32-split": 12, "bf16-kahan": 8,
              "bf16-sr": 6, "bf16": 6}
    world.start(2)
    for policy, nominal in wanted.items():
        world.ctl("set-optimizer", policy, "--yes")
        measured = world.status()["policy"]["bytes_per_parameter"]
        need(abs(measured / nominal - 1) < 0.25, f"{policy}: {measured} bytes a parameter, wanted about {nominal}")


def values_of(files):
    """The data of an export of one file, without its header."""
    (data,) = files.values()
    return data[8 + int.from_bytes(data[:8], "little"):]


@bounded(120)
def test_fp32_in_two_halves(world):
    """fp32-split is fp32-master: swaps between them lose nothing, each loads the other's checkpoints, and in fp32 compute they
    train to the same bits; in bf16 the model sees the nearest upper half, ties away from zero."""
    world.dataset()
    world.start(2, "--zero", "2")
    recipe = {"steps": 12, "optimizer": {"policy": "fp32-master", "lr": 1e-3}}
    world.train(world.recipe(**recipe))
    weights = world.weights("master")
    world.ctl("checkpoint", "save", "master")
    planned = world.json("set-optimizer", "fp32-split", "--dry-run")
    need(planned["exact"] and "nothing is lost" in planned["text"] and "ties" in planned["text"], f"planned: {planned}")
    done = world.json("set-optimizer", "fp32-split")
    need(done["exact"] and done["text"].startswith("nothing was lost; the model computes with the stored weights themselves"), f"to halves: {done}")
    need(world.weights("split") == weights, "fp32-split reads other values")
    world.ctl("export", world.path("halves"), "--dtype", "bf16")
    wide, upper = (memoryview(values_of(world.files(name))).cast(kind) for name, kind in (("split", "I"), ("halves", "H")))
    need(len(wide) == len(upper) and all((bits + 0x8000) >> 16 == half for bits, half in zip(wide, upper)),
         "the model does not see the nearest bf16, ties away from zero")
    world.ctl("checkpoint", "save", "split")
    back = world.json("set-optimizer", "fp32-master")
    need(back["exact"] and world.weights("back") == weights, f"back: {back}")
    for name, other in (("split", "fp32-master"), ("master", "fp32-split")):
        world.ctl("checkpoint", "load", name, "--policy", other)
        need(world.status()["policy"]["name"] == other and world.weights(f"{name}-as-{other}") == weights,
             f"{name} loaded as {other} has other weights")
    events = {}
    for policy in ("fp32-master", "fp32-split"):
        world.ctl("checkpoint", "load", "master", "--policy", policy + "+compute=fp32")
        events[policy] = [(e["loss"], e["grad_norm"], e["update_quality"], e["lost_update_share"])
                          for e in world.train(world.recipe(**{**recipe, "optimizer": {"lr": 1e-3}}))]
        world.weights(f"trained-{policy}")
    need(events["fp32-master"] == events["fp32-split"], f"in fp32 compute they part: {events}")
    need(world.files("trained-fp32-master") == world.files("trained-fp32-split"), "and their weights differ")
    need(all(e[2:] == (1, 0) for e in events["fp32-split"]), f"fp32-split loses something: {events['fp32-split']}")


@bounded(120)
def test_one_copy_where_the_stored_weight_is_what_the_model_sees(world):
    """Twelve bytes a parameter altogether under fp32-split, wherever weights stay resident; swaps keep the sum right."""
    world.config(hidden_size=128, intermediate_size=256)  # padding is little of it
    config = world.path("model", "config.json")

    def bytes_of(rank):
        audit = world.json("audit")
        need(audit["bytes_total"] == audit["bytes_allocated"], "the audit does not add up")
        rows = [row for row in audit["rows"] if row["rank"] == rank]
        kinds = {row["kind"]: 0 for row in rows}
        for row in rows:
            kinds[row["kind"]] += row["bytes"]
        return sum(row["elements"] for row in rows if row["kind"] == "m"), kinds

    for ranks, zero, gathered in ((1, 3, 0), (2, 2, 2), (2, 1, 2)):  # of the other ranks' parameters, 2 bytes each
        daemon = world.start(ranks, "--zero", str(zero), "--policy", "fp32-split", "--init", config, init=False, state=f"s{ranks}{zero}")
        for policy, beside in (("fp32-split", 0), ("fp32-master", 2), ("fp32-split", 0), ("fp32-split+compute=fp32", None),
                               ("fp24-q8", 0), ("bf16-kahan", 0), ("fp32-split", 0)):
            world.ctl("set-optimizer", policy, "--yes")
            own, kinds = bytes_of(0)
            stored = sum(kinds.get(kind, 0) for kind in ("weight", "weight.extra", "m", "m.scale", "v", "v.scale"))
            nominal = world.status()["policy"]["bytes_per_parameter"]
            need(abs(stored - nominal * own) < 0.02 * stored, f"{policy}: {stored} bytes for {own} parameters of {nominal}")
            if beside is not None:  # this rank's own parameters, again, and the others'
                wanted = own * (gathered + beside)
                need(abs(kinds.get("gathered", 0) - wanted) <= 0.03 * 4 * own, f"{policy}, ZeRO {zero}: gathered {kinds}, wanted {wanted}")
        daemon.end()


@bounded(120)
def test_the_fault_shows(world):
    """bf16 loses most of its updates from the first ones on, says so, and asks to be wanted; a swap ends it."""
    world.dataset()
    world.start(2)
    world.ctl("set-optimizer", "bf16", code=1)
    recipe = world.recipe(steps=1000000, optimizer={"policy": "bf16", "lr": 2e-5}, schedule={"kind": "constant"})
    world.refused("train", recipe, says=("--yes",))
    world.ctl("train", recipe, "--yes")
    world.ctl("wait", "--step", "10", timeout=60)
    world.ctl("pause")
    at = world.status()["step"]
    world.ctl("set-optimizer", "fp32-master", "--at-step", str(at + 100))
    world.ctl("set-schedule", "--steps", str(at + 300))
    world.ctl("resume")
    world.ctl("wait", timeout=90)
    events = world.events()
    need(events[4]["lost_update_share"] > 0.2 and events[4]["update_quality"] < 0.95, f"step 5 of bf16: {events[4]}")
    need(len(events) == at + 300 and all(e["update_quality"] < 1 for e in events[at:at + 100]), "the swap came too early")
    need(all(e["update_quality"] == 1 for e in events[at + 100:]), "after the swap updates are still lost")


@bounded(90)
def test_the_log_and_the_events_say_the_same_step(world):
    """A warning's step in the log is the one that its follower reads, in a second run too."""
    world.dataset()
    daemon = world.start(1)
    world.train(world.recipe())
    world.ctl("train", world.recipe(steps=1000000, optimizer={"policy": "fp32-master", "lr": 2e-5}, schedule={"kind": "constant"}))
    world.ctl("pause")
    at = world.status()["step"]
    follower = world.spawn("metrics", "--follow")
    until(lambda: world.status()["clients"] == 2, 20, "the follower is a client")
    world.ctl("set-optimizer", "bf16", "--yes")
    world.ctl("set-schedule", "--steps", str(at + 100))
    time.sleep(0.5)  # it has asked for events too
    world.ctl("resume")
    said, warned = follower.communicate(timeout=60)
    told = re.search(r"step (\d+): \w+: update_quality", said + warned)
    logged = re.search(r"warning rank=0 step=(\d+) engine: .*update_quality", daemon.said())
    need(told and logged, f"no alarm: {warned[-600:]}")
    need(told[1] == logged[1], f"the follower was told step {told[1]}, the log says {logged[1]}")


@bounded(180)
def test_compare(world):
    """Table, CSV and JSON; the daemon is left with equal bits."""
    world.dataset()
    world.start(2)
    world.train(world.recipe())
    weights, status = world.weights("before"), world.status()
    rows = world.json("compare", "--policies", "fp32-master,bf16,fp32-master+weight=bf16", world.recipe("c.yaml", steps=20), timeout=120)
    rows = rows["rows"] if isinstance(rows, dict) else rows
    need([row["policy"] for row in rows] == ["fp32-master", "bf16", "fp32-master+weight=bf16"], f"rows {rows}")
    for row in rows:
        need(len(row["losses"]) == 20, f"{row['policy']}: {len(row['losses'])} losses")
        need(abs(row["final_loss"] - sum(row["losses"][-10:]) / 10) < 1e-12, f"{row['policy']}: final_loss is not the mean of ten")
        need(row["last_loss"] == row["losses"][-1], "last_loss")
    need(min(row["ratio"] for row in rows) == 1, "the best has ratio 1")
    need(rows[0]["update_quality"] == 1 and rows[1]["update_quality"] < 1, "qualities")
    need(world.weights("after") == weights, "compare did not restore the weights")
    after = world.status()
    need(after["policy"] == status["policy"] and after["step"] == status["step"] and after["total_steps"] == status["total_steps"],
         f"compare left {after['policy']['name']} at step {after['step']}")


@bounded(120)
def test_compare_restores_after_ctrl_c(world):
    world.dataset()
    world.start(2)
    weights = world.weights("before")
    comparing = world.spawn("compare", "--policies", "fp32-master,bf16", world.recipe("c.yaml", steps=100000))
    until(lambda: world.status()["state"] == "running", 30, "its first run runs")
    comparing.send_signal(signal.SIGINT)
    comparing.wait(30)
    need(comparing.returncode != 0, "an interrupted compare ended with 0")
    need(world.status()["state"] in ("idle", "paused"), f"left {world.status()['state']}")
    need(world.weights("after") == weights, "an interrupted compare did not restore the weights")
    need(world.status()["policy"]["name"] == "fp32-master", "nor the policy")


@long
@bounded(600)
def test_soak(world):
    """Ten minutes' worth of swaps, saves and loads under a run; memory does not grow."""
    world.dataset()
    daemon = world.start(2)
    world.ctl("train", world.recipe(steps=10000000), "--yes")

    def resident():
        with open(f"/proc/{daemon.pids[0]}/statm", encoding="utf-8") as statm:
            return int(statm.read().split()[1]) * 4096

    first = None
    for turn in range(60):
        world.ctl("set-optimizer", POLICIES[turn % len(POLICIES)], "--yes")
        world.ctl("checkpoint", "save", f"turn-{turn}")
        world.ctl("checkpoint", "delete", f"turn-{turn}")
        at = world.status()["step"]
        world.ctl("wait", "--step", str(at + 20), timeout=60)
        if turn == 14:
            first = resident()
    need(resident() < first * 1.2 + 2e7, f"resident memory grew from {first} to {resident()}")
    json.loads(json.dumps(world.status()))
