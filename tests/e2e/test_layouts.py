"""set-layout: a run moves to another layout between two steps, and nobody who only looks at its numbers can tell."""
import json

from bounds import bounded
from harness import need

LONG = 100000


def journalled(world, command):
    with open(world.path("state", "journal.jsonl"), encoding="utf-8") as journal:
        return [line["outcome"] for line in map(json.loads, journal) if line["command"] == command]


def is_at(world, layout, zero, state):
    status = world.status()
    need((status["layout"], status["zero"], status["state"]) == (layout, zero, state),
         f"status says {status['layout']}, ZeRO {status['zero']}, {status['state']}; wanted {layout}, ZeRO {zero}, {state}")
    audit = world.json("audit")
    need(audit["bytes_total"] == audit["bytes_allocated"], f"audit adds up to {audit['bytes_total']}, not {audit['bytes_allocated']}")


@bounded(240)
def test_a_run_moves_and_goes_on(world):
    """Running, paused, idle; looked at first; refused without a trace; shown, recorded and journalled."""
    world.dataset()
    world.start(4)
    world.ctl("train", world.recipe(steps=LONG, evaluate={"data": world.path("data"), "every": 1000}))
    world.ctl("wait", "--step", "3", timeout=60)
    planned = world.json("set-layout", "d2t2", "--zero", "1", "--dry-run")
    is_at(world, "d4t1p1c1", 3, "running")
    done = world.json("set-layout", "t2d2", "--zero", "1")
    is_at(world, "d2t2p1c1", 1, "running")
    for field in ("layout_before", "layout_after", "zero_before", "zero_after", "bytes_moved", "bytes_before", "bytes_after", "bytes_peak"):
        need(planned[field] == done[field], f"{field}: the dry run said {planned[field]}, it was {done[field]}")
    need(done["layout_after"] == "d2t2p1c1" and done["zero_after"] == 1 and done["seconds"] > 0 and planned["seconds"] == 0, f"{done}")
    need(done["bytes_moved"] > 0 and done["bytes_peak"] >= done["bytes_before"] + done["bytes_after"], f"{done}")
    world.ctl("wait", "--step", str(world.status()["step"] + 3), timeout=60)
    need(world.json("runs")["runs"][-1]["layout"] == "d2t2p1c1", "runs shows the layout it began with")
    world.ctl("pause")
    step = world.status()["step"]
    for layout, says in (("d3", "d4, d2p2"), ("d2d2", "once"), ("", "layout"), ("d8", "8"), ("fast", "d4, d2p2"), ("t4", "fit this model"), ("p4", "fit this model")):
        world.refused("set-layout", layout, says=(says,))
    world.refused("set-layout", "d4", "--zero", "4", code=2, says=("--zero",))
    need("already" in world.ctl("set-layout", "d2t2").out, "the layout that it has is not said to be there")
    is_at(world, "d2t2p1c1", 1, "paused")
    need("moved" in world.ctl("set-layout", "c4").out, "what moved is not said")
    is_at(world, "d1t1p1c4", 1, "paused")
    world.ctl("resume")
    world.ctl("wait", "--step", str(step + 3), timeout=60)
    world.ctl("stop")
    world.ctl("set-layout", "d4", "--zero", "3")
    is_at(world, "d4t1p1c1", 3, "idle")
    need(len(world.train(world.recipe(steps=3))) == 3, "the next run does not train")
    world.ctl("set-optimizer", "fp24-q8")
    world.refused("set-layout", "d2t2", code=2, says=("groups", "fp24-q8"))  # tensor pieces of 16 columns
    is_at(world, "d4t1p1c1", 3, "idle")
    outcomes = journalled(world, "set-layout")
    need(outcomes.count("done") == 5 and outcomes.count("begun") == len(outcomes) / 2, f"the journal says {outcomes}")


@bounded(240)
def test_lanes_keep_their_bits_across_moves(world):
    """With lanes a run that moves over d and p has the losses of one that stayed, and ends with its weights."""
    world.dataset()
    recipe = world.recipe(steps=400, optimizer={"policy": "fp24-q8", "lr": 1e-3, "clip": 1.0})
    world.start(4, "--lanes", "4", state="stayed")
    stayed = world.train(recipe)
    weights = world.weights("stayed-weights")
    world.daemons[-1].end()
    world.start(4, "--lanes", "4", "--zero", "1", state="moved")
    world.ctl("train", recipe)
    for step, words in ((5, ("d2p2", "--zero", "2")), (10, ("d4", "--zero", "3")), (15, ("p2d2",))):
        world.ctl("wait", "--step", str(step), timeout=60)
        need(world.json("set-layout", *words)["bytes_moved"] > 0, "nothing moved")
        need(world.status()["state"] == "running", "the run was over before it moved")
    world.ctl("wait", timeout=60)
    moved = world.events()
    need([(e["loss"], e["grad_norm"]) for e in moved] == [(e["loss"], e["grad_norm"]) for e in stayed], "losses differ from those of the run that stayed")
    need(world.weights("moved-weights") == weights, "the weights differ in bits from those of the run that stayed")
