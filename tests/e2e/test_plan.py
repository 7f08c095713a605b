"""trainerd --dry-run: the plan is what audit shows once it is taken, on any number of ranks, planned there or alone."""
import json
import math
import re

from bounds import bounded
from harness import need


def planned(world, ranks, *options, code=0):
    """The rows of a plan, in bytes, by name."""
    state = f"plan-{len(world.daemons)}"
    daemon = world.start(ranks, "--dry-run", *options, wait=False, state=state)
    ended = daemon.wait_end(30)
    need(ended == code, f"--dry-run {options} ended with {ended}, wanted {code}: {daemon.said()[-800:]}")
    rows = {}
    for line in daemon.said().splitlines():
        name, number = line[:22].strip(), line[22:].split()
        if name and number and number[0].isdigit() and line[22:23] == " ":
            rows[name] = int(number[0])
    return rows


def audited(world):
    """audit's bytes by kind, of the fullest rank."""
    ranks = {}
    for row in world.json("audit")["rows"]:
        kinds = ranks.setdefault(row["rank"], {})
        kinds[row["kind"]] = kinds.get(row["kind"], 0) + row["bytes"]
    return max(ranks.values(), key=lambda kinds: sum(kinds.values()))


LARGE = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12288,
    "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False,
    "max_position_embeddings": 40960, "hidden_act": "silu", "attention_bias": False, "initializer_range": 0.02}


@bounded(240)
def test_a_plan_is_what_audit_shows(world):
    world.dataset()
    recipe = world.recipe(steps=100000, evaluate={"data": world.dataset(rows=16, seed=2, name="held-out"), "every": 1000})
    for layout, options in (("d1", ()), ("d2", ("--policy", "fp24-q8")), ("d4", ("--lanes", "8")), ("d8", ("--recompute", "block")),
                            ("d2", ("--zero", "1")), ("d2", ("--zero", "2", "--policy", "fp32-split")), ("p2", ()), ("d2p2", ("--zero", "3")),
                            ("t2", ()), ("c2p2", ("--recompute", "block"))):
        ranks = math.prod(int(count) for count in re.findall(r"\d+", layout))
        options = (*options, "--layout", layout)
        there = planned(world, ranks, *options, "--run", recipe)
        alone = planned(world, 1, *options, "--run", recipe)
        for name in ("total", "weights, to gather", "gradients, to reduce"):
            need(abs(there[name] - alone[name]) <= 0.01 * there[name], f"{layout}: planned on all ranks {there}, alone {alone}")
        daemon = world.start(ranks, *options, state=f"state-{''.join(options)}")
        world.ctl("train", recipe)
        world.ctl("wait", "--step", "1", timeout=60)
        world.ctl("pause")
        found = audited(world)
        for kind, bytes_ in found.items():
            need(abs(there.get(kind, 0) - bytes_) <= 0.05 * bytes_, f"{layout} {kind}: {there.get(kind)} planned, {bytes_} taken")
        need(abs(there["total"] - sum(found.values())) <= 0.01 * there["total"], f"{layout}: {there} against {found}")
        daemon.end()


@bounded(60)
def test_a_plan_takes_nothing(world):
    """A model of 8 thousand million parameters is planned here in no time, and does not fit here."""
    large = world.write("large/config.json", json.dumps(LARGE))
    parameters = 8190735360
    rows = {}
    for layout in ("d8", "d64"):
        daemon = world.start(1, "--dry-run", "--init", large, "--layout", layout, init=False, wait=False, state=layout)
        need(daemon.wait_end(30) == 0, f"no plan: {daemon.said()[-600:]}")
        need(f"{parameters} parameters" in daemon.said(), f"which model? {daemon.said()[:300]}")
        rows[layout] = int(next(line for line in daemon.said().splitlines() if line.startswith("m ")).split()[1])
    need(abs(rows["d8"] / (parameters * 4 / 8) - 1) < 0.01 and abs(rows["d8"] / rows["d64"] / 8 - 1) < 0.01, f"m: {rows}")
    daemon = world.start(1, "--dry-run", "--init", large, init=False, wait=False, state="d1")
    need(daemon.wait_end(30) == 1 and "do not fit" in daemon.said(), f"eight thousand million fit? {daemon.said()[-600:]}")
    daemon = world.start(1, "--dry-run", init=False, wait=False, state="none")
    need(daemon.wait_end(30) == 2 and "--init DIR" in daemon.said(), f"a plan of nothing: {daemon.said()[-600:]}")
    daemon = world.start(1, "--ranks", "8", wait=False, state="no-plan")
    need(daemon.wait_end(30) == 2 and "--dry-run" in daemon.said(), f"--ranks 8 of a daemon of one: {daemon.said()[-600:]}")


def near(got, wanted, tolerance, what):
    need(abs(got - wanted) <= tolerance * abs(wanted), f"{what}: {got}, by hand {wanted}")


@bounded(60)
def test_the_time_of_a_step(world):
    """Against arithmetic by hand: Qwen3-8B, eight sequences of 32768 a rank, on machines that are not here."""
    large = world.write("large/config.json", json.dumps(LARGE))
    shape = ("--sequence", "32768", "--global-batch", "64", "--zero", "3")
    plan = world.json("plan", large, "--layout", "d8", "--machine", "h200", *shape, code=1)  # it does not fit
    tokens, rate = 8 * 32768, 989e12
    head = 151936 * 4096
    blocks = 36 * (4096 * 128 * (32 + 8 + 8 + 32) + 3 * 4096 * 12288)
    near(plan["seconds"]["products"], 6 * tokens * (blocks + head) / (0.72 * rate), 1e-6, "products")
    half = 36 * 32 * 128 * 8 * 32768**2 / 2  # pairs of a query and a key it sees, times head_dim
    near(plan["seconds"]["attention"], half * (4 / 0.62 + 10 / 0.50) / rate, 1e-6, "attention")
    need(not plan["fits"] and plan["memory_bytes"] > 134e9, f"all activations of 32768 tokens fit? {plan['memory_bytes']}")
    again = world.json("plan", large, "--layout", "d8", "--machine", "h200", "--recompute", "block", *shape)
    near(again["seconds"]["products"], tokens * (6 * (blocks + head) + 2 * blocks * 35 / 36) / (0.72 * rate), 1e-6, "recomputed")
    near(again["model_flops_utilization"], (6 * 8190735360 * tokens + 12 * half) / again["seconds"]["step"] / rate, 1e-6, "utilization")
    need(again["fits"] and sum(again["memory"].values()) == again["memory_bytes"], f"{again['memory']}")
    small = world.json("plan", large, "--layout", "d8", "--machine", "h100", "--recompute", "block", *shape)
    need(small["seconds"]["streaming"] > 1.4 * again["seconds"]["streaming"], "slower memory, the same time")


@bounded(60)
def test_layouts_compared(world):
    large = world.write("large/config.json", json.dumps(LARGE))
    words = ("--sequence", "32768", "--machine", "h200", "--recompute", "block")
    found = world.json("plan", large, "--ranks", "16", *words)["plans"]
    need(len({row["layout"] for row in found}) == len(found) >= 5, f"layouts: {[row['layout'] for row in found]}")
    share = 8190735360 * 4 / 16  # uneven stages, and tensors that are not cut, are all that it may be more
    need(all(share < 1.01 * row["memory"]["weight"] < 2.2 * share for row in found), "the ranks' shares of the weights do not add up")
    fitting = [row["seconds"]["step"] for row in found if row["fits"]]
    need(fitting == sorted(fitting) and len(fitting) > 1, f"not the quickest first: {fitting}")
    need(all(not row["fits"] for row in found[len(fitting):]), "one that does not fit stands before one that does")
    need(all(set(row["wire"]) == {"gather", "reduce", "context", "tensor", "pipeline"} and sum(row["wire"].values()) == row["wire_bytes"]
             for row in found), "the wire's rows do not add up")
    need(all(max(row["memory_bytes_by_stage"]) == row["memory_bytes"] and len(row["memory_bytes_by_stage"]) == int(row["layout"].split("p")[1].split("c")[0])
             for row in found), "the stages' memory is not there for all stages")
    one = world.json("plan", large, "--layout", found[1]["layout"], *words)
    need(all(one[key] == found[1][key] for key in found[1]), f"alone {one}, compared {found[1]}")
    alone = world.start(1, "--dry-run", "--init", large, "--ranks", "16", "--lanes", "4", *words, init=False, wait=False, state="lanes")
    need(alone.wait_end(30) == 0 and "d4t" in alone.said(), f"no plan with lanes: {alone.said()[-600:]}")
    need(not re.search(r"^d(8|16)t", alone.said(), re.MULTILINE), "a d that does not divide the lanes is among the layouts")
    world.ctl("plan", large, "--ranks", "8", "--machine", "h20", code=2)
    world.refused("plan", large, "--ranks", "16", "--layout", "d8", code=2, says=("d8", "16"))
    full = world.ctl("plan", large, "--ranks", "8", "--layout", "d4t2", *words).out
    need("arena" in full and "weights, to gather" in full and "attention" in full, f"one layout, not in full: {full}")
    bare = world.json("plan", large, "--ranks", "8", "--machine", "h200")["plans"]
    need(all(row["wire_bytes"] is None and row["seconds"] is None for row in bare), f"without micro-batches: {bare[0]}")
    world.start(2)
    mine = world.json("plan", "--sequence", "64")["plans"]
    need({row["layout"] for row in mine} >= {"d2t1p1c1", "d1t1p1c2"} and all(row["fits"] for row in mine), f"the daemon's: {mine}")
