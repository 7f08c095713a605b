"""One sequence of 32768 tokens: it trains, alone and cut over ranks, and its memory is linear in its length. And what a plan says
is what the process takes from the machine."""
import json
import random

from bounds import bounded
from harness import TINY, need

LENGTH = 32768


def planned(world, config, *words):
    done = world.ctl("plan", config, *words, json_out=True, code=None)
    return done.json()


@bounded(240)
def test_a_sequence_of_32768_tokens(world):
    config = world.config(max_position_embeddings=LENGTH)
    choose = random.Random(7)
    text = world.write("long.txt", " ".join(choose.choice(("red", "green", "blue")) for _ in range(LENGTH // 4))[:LENGTH - 8])
    world.ctl("data", "prepare", text, "-o", world.path("data"), "--cutoff", LENGTH)
    recipe = world.recipe(steps=2, global_batch=1, max_tokens=None, micro_batch=1)
    arenas = {n: planned(world, config, "--layout", "d1", "--recompute", "block", "--sequence", str(n), "--global-batch", "1")["memory"]["arena"]
              for n in (LENGTH // 4, LENGTH // 2, LENGTH)}
    grows = (arenas[LENGTH] - arenas[LENGTH // 2]) / (arenas[LENGTH // 2] - arenas[LENGTH // 4])
    need(abs(grows - 2) < 0.02, f"twice the length does not add twice the memory: {arenas}")
    need(arenas[LENGTH] < LENGTH * 64 * TINY["hidden_size"] * 2, f"a square of the length would be 1 GB; so much is planned: {arenas}")
    losses = {}
    for layout, ranks in (("d1", 1), ("c2", 2)):
        daemon = world.start(ranks, "--layout", layout, "--recompute", "block", "--init", config, init=False, state=layout)
        events = world.train(recipe, timeout=200)
        need(all(e["tokens"] > LENGTH * 3 // 4 for e in events), f"the row is not whole: {events}")
        losses[layout] = [e["loss"] for e in events]
        daemon.end()
    need(all(abs(a - b) < 2e-3 * a for a, b in zip(losses["d1"], losses["c2"])), f"cut over two ranks the losses differ: {losses}")


def resident(pid):
    """Bytes of its own, now: anonymous memory, without the libraries' files and what is shared between ranks."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


@bounded(180)
def test_a_plan_is_what_the_process_takes(world):
    """To 5 %: what rank 0's anonymous memory grows by, from an empty daemon to a run under way."""
    changes = dict(hidden_size=1024, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4, head_dim=128,
                   intermediate_size=3072, vocab_size=8192, tie_word_embeddings=False)  # arrays large beside the pages they end in
    world.dataset()
    recipe = world.recipe(steps=100000, global_batch=16, max_tokens=1024)
    for layout, ranks, options in (("d1", 1, ()), ("c2", 2, ("--zero", "1")), ("p2", 2, ())):
        daemon = world.start(ranks, "--layout", layout, *options, init=False, state=layout)
        pid = daemon.rank_pids()[0]
        empty = resident(pid)
        config = world.config(**changes)
        world.ctl("init", config)
        world.ctl("train", recipe)
        world.ctl("wait", "--step", "2", timeout=100)
        world.ctl("pause")
        taken = resident(pid) - empty
        rows = {}
        for row in world.json("audit")["rows"]:
            rows[row["rank"]] = rows.get(row["rank"], 0) + row["bytes"]
        plan = planned(world, config, "--layout", layout, "--run", recipe, *options)
        need(abs(plan["memory_bytes"] - max(rows.values())) <= 0.05 * plan["memory_bytes"], f"{layout}: {plan['memory_bytes']} planned, audit {rows}")
        need(abs(taken - rows[0]) <= 0.05 * rows[0], f"{layout}: rank 0 took {taken / 1e6:.1f} MB, audit says {rows[0] / 1e6:.1f}")
        daemon.end()
