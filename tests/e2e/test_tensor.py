"""A daemon whose ranks share every layer, as its users meet it."""
import harness
from bounds import bounded
from harness import need
from test_plan import audited, planned

WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}


class World(harness.World):
    """With a model that four ranks can cut, in whole groups of q8."""

    def config(self, **changes):
        return super().config(**{**WIDE, **changes})


@bounded(180)
def test_a_tensor_group_serves(world):
    """Policies, evaluations, checkpoints, layouts and an export while a run goes; norms on every rank, counted once."""
    data = world.dataset()
    world.run_long("--layout", "d2t2", ranks=4)
    status = world.status()
    need((status["layout"], status["zero"]) == ("d2t2p1c1", 3), f"layout and stage: {status['layout']}, {status.get('zero')}")
    for policy in ("fp24-q8", "bf16-kahan", "fp32-split", "fp32-master"):
        done = world.json("set-optimizer", policy, "--yes")
        need(abs(done["bytes_per_parameter_after"] / world.status()["policy"]["bytes_per_parameter"] - 1) < 0.01, f"{policy}: {done}")
    world.ctl("pause")
    audit = world.json("audit")
    need(audit["bytes_total"] == audit["bytes_allocated"], "the audit does not add up")
    held = {}
    for row in audit["rows"]:
        if row["kind"] == "m":
            held[row["tensor"]] = held.get(row["tensor"], 0) + row["elements"]
    need(held["model.norm.weight"] == 2 * 64 and held["model.layers.0.mlp.up_proj.weight"] == 128 * 64, f"who holds what: {held}")
    loss = world.json("evaluate", data)["loss"]
    world.ctl("checkpoint", "save", "cut")
    world.ctl("export", world.path("exported"))
    world.ctl("set-layout", "d4")
    need(abs(world.json("evaluate", data)["loss"] / loss - 1) < 1e-3, "another loss once it has moved")
    world.ctl("set-layout", "t2c2")
    world.ctl("checkpoint", "load", "cut")
    need(abs(world.json("evaluate", data)["loss"] / loss - 1) < 1e-3, "another loss once it is loaded")
    at = world.status()["step"]
    world.ctl("resume")
    world.ctl("wait", "--step", str(at + 2), timeout=60)
    world.ctl("stop")
    world.ctl("load", world.path("exported"))
    need(abs(world.json("evaluate", data)["loss"] / loss - 1) < 1e-2, "another loss from the export")


@bounded(180)
def test_a_plan_of_a_tensor_group(world):
    """What --dry-run says on all ranks or alone is what audit shows, and it falls with t."""
    world.dataset()
    recipe = world.recipe(steps=100000)
    totals = {}
    for layout, options in (("d1", ()), ("t2", ("--zero", "1")), ("d2t2", ("--recompute", "block")), ("t4", ())):
        ranks = {"d1": 1, "t2": 2}.get(layout, 4)
        options = ("--layout", layout, *options)
        there = planned(world, ranks, *options, "--run", recipe)
        alone = planned(world, 1, *options, "--run", recipe)
        there.pop("there", None)
        alone.pop("there", None)
        need(there.keys() == alone.keys(), f"{layout}: {there} on all ranks, {alone} alone")
        for name in there:
            need(abs(there[name] - alone[name]) <= 0.01 * there[name], f"{layout} {name}: {there[name]} on all ranks, {alone[name]} alone")
        daemon = world.start(ranks, *options, state=f"state-{layout}")
        world.ctl("train", recipe)
        world.ctl("wait", "--step", "1", timeout=60)
        world.ctl("pause")
        found = audited(world)
        for kind, bytes_ in found.items():
            need(there.get(kind, 0) == bytes_, f"{layout} {kind}: {there.get(kind)} planned, {bytes_} taken")
        totals[layout] = found
        daemon.end()
    for kind in ("m", "weight", "arena"):
        need(totals["t4"][kind] < 0.4 * totals["d1"][kind] and totals["t2"][kind] < 0.65 * totals["d1"][kind], f"{kind}: {totals}")


@bounded(60)
def test_what_t_cannot_cut(world):
    """Refused at the start, by set-layout and by set-optimizer, with what would do; the model stands."""
    world.dataset()
    world.start(4, "--layout", "d2t2", "--init", world.config(intermediate_size=72), init=False)
    world.refused("set-optimizer", "fp24-q8", code=None, says=("32 columns", "36"))
    need(world.status()["layout"] == "d2t2p1c1" and world.status()["policy"]["name"] == "fp32-master", f"{world.status()}")
    three = world.start(3, "--layout", "t3", state="three", wait=False)
    need(three.wait_end(30) != 0 and "of 3 ranks d3" in three.said(), f"t3: {three.said()[-600:]}")
