"""trainerd --dry-run: the plan is what audit shows once it is taken, on any number of ranks, planned there or alone."""
import json

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


@bounded(240)
def test_a_plan_is_what_audit_shows(world):
    world.dataset()
    recipe = world.recipe(steps=100000, evaluate={"data": world.dataset(rows=16, seed=2, name="held-out"), "every": 1000})
    for ranks, options in ((1, ()), (2, ("--policy", "fp24-q8")), (4, ("--lanes", "8")), (8, ("--recompute", "block")),
                           (2, ("--zero", "1"))):
        there = planned(world, ranks, *options, "--run", recipe)
        alone = planned(world, 1, *options, "--layout", f"d{ranks}", "--run", recipe)
        for name in ("total", "weights, to gather", "gradients, to reduce"):
            need(abs(there[name] - alone[name]) <= 0.01 * there[name], f"d{ranks}: planned on all ranks {there}, alone {alone}")
        daemon = world.start(ranks, *options, state=f"state-{ranks}{''.join(options)}")
        world.ctl("train", recipe)
        world.ctl("wait", "--step", "1", timeout=60)
        world.ctl("pause")
        found = audited(world)
        for kind, bytes_ in found.items():
            need(abs(there.get(kind, 0) - bytes_) <= 0.05 * bytes_, f"d{ranks} {kind}: {there.get(kind)} planned, {bytes_} taken")
        need(abs(there["total"] - sum(found.values())) <= 0.01 * there["total"], f"d{ranks}: {there} against {found}")
        daemon.end()


@bounded(60)
def test_a_plan_takes_nothing(world):
    """A model of 8 thousand million parameters is planned here in no time, and does not fit here."""
    large = world.write("large/config.json", json.dumps({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12288,
        "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False,
        "max_position_embeddings": 40960, "hidden_act": "silu", "attention_bias": False, "initializer_range": 0.02}))
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
