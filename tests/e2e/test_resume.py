"""Resuming gives the same bits: after a checkpoint, after a killed rank, after a kill in the middle of a save."""
import signal
import time

from bounds import bounded
from harness import need, send

ENDLESS = 1000000
# In absolute steps, so that it is the same for a run of any length.
SCHEDULE = {"kind": "cosine", "warmup_steps": 30, "decay_steps": 400, "min_lr": 1e-4}


def same(events, wanted, what):
    for event in events:
        need((event["loss"], event["grad_norm"]) == wanted[event["step"]],
             f"{what}: step {event['step']} gives {event['loss']}, {event['grad_norm']}, wanted {wanted[event['step']]}")


def killed_and_resumed(world, policy, *options):
    """A run is cut off wherever the kill finds it, and goes on for 100 steps; one of that length is never interrupted."""
    world.dataset()

    def recipe(steps):
        return world.recipe(steps=steps, checkpoint={"every": 25, "keep": 3}, order="shuffled(5)", schedule=SCHEDULE,
                            optimizer={"policy": policy, "lr": 1e-3, "weight_decay": 0.01, "clip": 1.0})

    first = world.start(2, *options, state="cut")
    world.ctl("train", recipe(ENDLESS), "--yes")
    world.ctl("wait", "--step", "60", timeout=60)
    send(first.pids[-1], signal.SIGKILL)
    need(first.wait_end(10) != 0, "a killed rank must end the daemon non-zero")
    first.all_gone()
    back = world.start(2, *options, init=False, state="cut")
    status = world.status()
    need(status["state"] == "paused" and status["step"] >= 50, f"came back {status['state']} at step {status['step']}")
    last = status["step"] + 100
    world.ctl("set-schedule", "--steps", str(last))
    world.ctl("resume")
    world.ctl("wait", timeout=90)
    after = [event for event in world.events() if event["step"] > status["step"]]
    weights = world.weights("cut-weights")
    need(after and after[-1]["step"] == last, "the resumed run did not reach its end")
    back.end()

    world.start(2, *options, state="whole")
    wanted = {e["step"]: (e["loss"], e["grad_norm"]) for e in world.train(recipe(last), "--yes")}
    same(after, wanted, f"{policy} resumed at {status['step']}")
    need(world.weights("whole-weights") == weights, f"{policy}: the weights differ in bits from those of the whole run")


@bounded(240)
def test_after_a_killed_rank_fp32_master(world):
    killed_and_resumed(world, "fp32-master")


@bounded(240)
def test_after_a_killed_rank_bf16_sr(world):
    killed_and_resumed(world, "bf16-sr")


@bounded(240)
def test_after_a_killed_rank_fp24_q8(world):
    killed_and_resumed(world, "fp24-q8")


@bounded(240)
def test_after_a_killed_rank_fp32_split(world):
    killed_and_resumed(world, "fp32-split", "--zero", "2")


@bounded(120)
def test_after_a_checkpoint_by_hand(world):
    """Save at a step, go on, load, go on again: twice the same."""
    world.dataset()
    world.start(2)
    world.ctl("train", world.recipe(steps=ENDLESS, schedule=SCHEDULE))
    world.ctl("wait", "--step", "10", timeout=60)
    world.ctl("pause")
    at = world.status()["step"]
    world.ctl("set-schedule", "--steps", str(at + 100))
    world.ctl("checkpoint", "save", "middle")
    world.ctl("resume")
    world.ctl("wait", "--state", "idle", timeout=60)
    once, weights = {e["step"]: (e["loss"], e["grad_norm"]) for e in world.events()}, world.weights("once")
    world.ctl("checkpoint", "load", "middle")
    need(world.status()["step"] == at, "load brought another step")
    world.ctl("resume")
    world.ctl("wait", "--state", "idle", timeout=60)
    same([e for e in world.events() if e["step"] > at], once, "after load")
    need(world.weights("twice") == weights, "the weights differ in bits")


@bounded(120)
def test_sigusr1_saves(world):
    world.dataset()
    daemon = world.start(2)
    world.ctl("train", world.recipe(steps=100000))
    world.ctl("wait", "--step", "5", timeout=60)
    send(daemon.process.pid, signal.SIGUSR1)  # mpirun passes it on
    need(daemon.wait_end(30) == 0, f"ended with {daemon.process.returncode}")
    world.start(2, init=False)
    status = world.status()
    need(status["state"] == "paused" and status["step"] >= 5, f"came back {status['state']} at step {status['step']}")


@bounded(240)
def test_a_kill_during_a_save(world):
    """The last good checkpoint stands, whenever the kill comes: nothing half-written is ever taken."""
    world.dataset()
    world.config(hidden_size=128, intermediate_size=512, num_hidden_layers=4, head_dim=32)
    config = world.path("model", "config.json")
    for number, pause in enumerate((0.0, 0.01, 0.03, 0.08)):
        state = f"state-{number}"
        daemon = world.start(2, "--init", config, init=False, state=state)
        world.train(world.recipe(steps=3))
        good = world.weights(f"good-{number}")
        before = world.status()["total_steps"]
        world.spawn("checkpoint", "save", "torn")
        time.sleep(pause + 0.02)
        send(daemon.pids[number % 2], signal.SIGKILL)
        need(daemon.wait_end(10) != 0, "a killed rank must end the daemon non-zero")
        daemon.all_gone()
        back = world.start(2, init=False, state=state)
        need(world.status()["total_steps"] == before, f"came back after {world.status()['total_steps']} updates, wanted {before}")
        for row in world.json("checkpoint", "list")["checkpoints"]:
            world.json("checkpoint", "verify", row["name"])
        need(world.weights(f"back-{number}") == good, f"after a kill {pause} s into the save the weights differ")
        back.end()


@bounded(240)
def test_lanes_make_the_number_of_ranks_invisible(world):
    """--lanes 4: a run on two ranks goes on with one, with the same bits as a run that stayed on one."""
    world.dataset()
    recipe = world.recipe(steps=60, global_batch=6, checkpoint={"every": 20, "keep": 3})
    one = world.start(1, "--lanes", "4", state="one")
    wanted = {e["step"]: (e["loss"], e["grad_norm"]) for e in world.train(recipe)}
    weights = world.weights("one-weights")
    one.end()
    two = world.start(2, "--lanes", "4", state="two")
    same(world.train(recipe), wanted, "two ranks")
    need(world.weights("two-weights") == weights, "two ranks give other weights than one")
    names = [row["name"] for row in world.json("checkpoint", "list")["checkpoints"] if row["step"] == 20]
    two.end()
    need(len(names) == 1, f"the checkpoints of step 20 are {names}")
    world.start(1, "--lanes", "4", init=False, state="two")
    world.ctl("checkpoint", "load", names[0])
    world.ctl("resume")
    world.ctl("wait", "--state", "idle", timeout=60)
    need(world.weights("back-weights") == weights, "two ranks, then one, give other weights")
