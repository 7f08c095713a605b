"""A daemon whose ranks are pipeline stages, as its users meet it."""
import signal

from bounds import bounded
from harness import need, send, until


@bounded(180)
def test_a_pipeline_serves(world):
    """Policies, layouts, checkpoints, evaluations while a run goes over stages that both hold the tied embedding."""
    data = world.dataset()
    world.run_long("--layout", "d2p2", ranks=4)
    status = world.status()
    need((status["layout"], status["zero"]) == ("d2t1p2c1", 1), f"layout and stage: {status['layout']}, {status.get('zero')}")
    for policy in ("fp24-q8", "bf16-kahan", "fp32-split", "fp32-master"):
        done = world.json("set-optimizer", policy, "--yes")
        need(abs(done["bytes_per_parameter_after"] / world.status()["policy"]["bytes_per_parameter"] - 1) < 0.01, f"{policy}: {done}")
    need(done["exact"], f"fp32-split to fp32-master is not exact: {done}")
    world.ctl("pause")
    audit = world.json("audit")
    need(audit["bytes_total"] == audit["bytes_allocated"], "the audit does not add up")
    held = {rank: {row["tensor"] for row in audit["rows"] if row["rank"] == rank and row["kind"] == "m"} for rank in range(4)}
    need("model.embed_tokens.weight" in held[0] & held[2] and not any(".1." in t for t in held[0]) and
         not any(".0." in t for t in held[2]), f"who holds what: {held}")
    loss = world.json("evaluate", data)["loss"]
    world.ctl("checkpoint", "save", "staged")
    world.ctl("set-layout", "c2d2")
    need(abs(world.json("evaluate", data)["loss"] / loss - 1) < 1e-3, "another loss once it has moved")
    world.ctl("checkpoint", "load", "staged")
    need(abs(world.json("evaluate", data)["loss"] / loss - 1) < 1e-3, "another loss once it is loaded")
    at = world.status()["step"]
    world.ctl("resume")
    world.ctl("wait", "--step", str(at + 2), timeout=60)


@bounded(120)
def test_commands_wait_for_the_end_of_a_step(world):
    """With micro-batches in flight nothing is taken up within a step; status says what waits, and it is done all the same."""
    data = world.dataset(rows=600)
    world.run_long("--layout", "p2", data=data, global_batch=512, micro_batch=1, max_tokens=None)
    before = world.status()["step"]
    asked = world.spawn("evaluate", data)
    until(lambda: asked.poll() is not None or world.status()["waiting"] == "evaluate", 60, "status says that evaluate waits")
    need(asked.wait(60) == 0, f"evaluate failed: {asked.stderr.read()}")
    need(world.status()["step"] > before, "it was done within the step")


@bounded(90)
def test_a_killed_stage_ends_all(world):
    world.dataset()
    for victim in (0, 1):
        daemon = world.start(2, "--layout", "p2", state=f"state-{victim}")
        world.ctl("train", world.recipe(steps=100000))
        world.ctl("wait", "--step", "2", timeout=60)
        send(daemon.pids[victim], signal.SIGKILL)
        need(daemon.wait_end(10) != 0, "the daemon ended with 0 after a stage was killed")
        daemon.all_gone()


@bounded(90)
def test_a_stopped_stage_ends_all(world):
    """Its neighbour waits for what it was to send, and the one line names it."""
    world.dataset()
    daemon = world.start(2, "--layout", "p2", "--stuck-after", "4")
    world.ctl("train", world.recipe(steps=100000))
    world.ctl("wait", "--step", "2", timeout=60)
    send(daemon.pids[1], signal.SIGSTOP)
    need(daemon.wait_end(25) != 0, "the daemon ended with 0 although a stage was stopped")
    lines = [line for line in daemon.said().splitlines() if "no progress" in line]
    need(len(lines) == 1 and f"rank 1 (pid {daemon.pids[1]}) is stopped" in lines[0] and "operation=" in lines[0], f"said: {lines}")
    send(daemon.pids[1], signal.SIGCONT)
    daemon.all_gone()


@bounded(60)
def test_more_stages_than_layers(world):
    """Refused at the start and by set-layout, with what would fit; the model stands."""
    world.dataset()
    world.start(4, "--layout", "d2p2")
    world.refused("set-layout", "p4", says=("p = 4", "2 layers"))
    need(world.status()["layout"] == "d2t1p2c1", "the layout changed")
    daemon = world.start(4, "--layout", "p4", state="other", wait=False)
    need(daemon.wait_end(30) != 0 and "2 layers" in daemon.said(), f"p4 of two layers: {daemon.said()[-600:]}")
