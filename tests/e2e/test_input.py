"""Bad input: the contract's error, and the state unharmed."""
import json
import os
import resource
import shutil

from bounds import bounded
from harness import TINY, need


@bounded(120)
def test_refusals_leave_the_state_as_it_was(world):
    world.dataset()
    world.start(2)
    before = world.weights("before")
    world.ctl("checkpoint", "save", "mine")
    recipe = world.recipe()
    cases = [
        (("set-optimizer", "fp32-mster"), None, ("fp32-master",)),            # the nearest right name
        (("set-optimizer", "fp32-master+wieght=bf16"), None, ("weight",)),
        (("set-optimizer", "fp32-master+weight=bf17"), None, ("bf16",)),
        (("set-optimizer", "bf16"), None, ("--yes",)),                        # the fault asks
        (("train", world.path("none.yaml")), None, ("none.yaml",)),
        (("train", world.recipe("typo.yaml", glbal_batch=8)), None, ("global_batch",)),
        (("train", world.recipe("empty.yaml", data=world.path("nowhere"))), None, ("nowhere",)),
        (("train", world.recipe("zero.yaml", global_batch=0)), None, ("global_batch",)),
        (("train", world.recipe("type.yaml", steps="many")), None, ("steps",)),
        (("train", world.recipe("both.yaml", epochs=2)), None, ("epochs", "steps")),
        (("train", world.recipe("sched.yaml", steps=100, schedule={"kind": "cosine", "warmup_steps": 50, "decay_steps": 5})), None, ("decay_steps",)),
        (("evaluate", world.path("nowhere")), None, ("nowhere",)),
        (("load", world.path("nowhere")), None, ("nowhere",)),
        (("checkpoint", "load", "nothing-by-that-name"), None, ("nothing-by-that-name",)),
        (("checkpoint", "verify", "mime"), None, ('"mine"',)),
        (("checkpoint", "delete", "nothing-by-that-name"), None, ("nothing-by-that-name",)),
        (("checkpoint", "save", "../outside"), None, ()),
        (("resume",), None, ("idle",)),                                       # not in this state, which is named
        (("pause",), None, ("idle",)),
        (("stop",), None, ("idle",)),
    ]
    for words, code, says in cases:
        result = world.refused(*words, code=code, says=says)
        need(result.code in (1, 2), f"{words} ended with {result.code}")
    status = world.status()
    need(status["state"] == "idle" and status["policy"]["name"] == "fp32-master", f"state after refusals: {status['state']}")
    need(world.weights("after") == before, "a refused command changed weights")
    world.train(recipe)  # and it still works


@bounded(60)
def test_options_and_variables_that_are_not_there(world):
    """The nearest right name; a variable that nothing reads is a warning, said once."""
    for flags, says in ((("--dryrun",), ("no option --dryrun", "did you mean --dry-run?")),
                        (("--nosuch", "3"), ("no option --nosuch", "--help")),
                        (("--lisen=unix:s",), ("no option --lisen", "--listen")),
                        (("--stuck-after",), ("--stuck-after needs a value",))):
        daemon = world.start(1, *flags, init=False, wait=False)
        need(daemon.wait_end(20) == 2, f"{flags}: {daemon.said()[-600:]}")
        for word in says:
            need(word in daemon.said(), f"{flags}: the refusal does not say {word!r}: {daemon.said()[-600:]}")
    daemon = world.start(2, "--dry-run", wait=False, env={"TRAINERD_LAYOT": "d2", "TRAINERD_TEST_LONG": "1", "TRAINERD_ZERO": "2",
                                                          "TRAINERD_CONNECT": "unix:/tmp/none"})
    need(daemon.wait_end(20) == 0, f"an unknown variable refuses: {daemon.said()[-600:]}")
    said = [line for line in daemon.said().splitlines() if "the environment's" in line]
    need(len(said) == 1 and "TRAINERD_LAYOT" in said[0] and "TRAINERD_LAYOUT?" in said[0], f"warnings: {said}")


@bounded(60)
def test_where_a_recipe_is_wrong(world):
    """File, line, key, nearest name: also of what is seen only with the data, and by trainerd --run."""
    world.dataset()  # 48 rows: 6 steps an epoch
    text = "data: data\nepochs: 2\nglobal_batch: 8\n"
    cases = [("order: shuffeld\n", ("r.yaml:4: order", "shuffled")),
             ("optimizer:\n  policy: fp32-mastr\n", ("r.yaml:5: optimizer.policy", "fp32-master")),
             ("optimizer:\n  decya: all\n", ("r.yaml:5:", "optimizer.decay")),
             ("schedule:\n  kind: cosne\n", ("r.yaml:5: schedule.kind", "cosine")),
             ("schedule:\n  warmup_steps: 13\n", ("r.yaml:5: schedule.warmup_steps", "12 steps")),
             ("schedule:\n  kind: wsd\n  wsd_decay: 13\n", ("r.yaml:6: schedule.wsd_decay", "12"))]
    world.start(1)
    for number, (wrong, says) in enumerate(cases):
        world.refused("train", world.write(f"{number}/r.yaml", text.replace("data: data", "data: " + world.path("data")) + wrong), code=2, says=says)
        world.refused("schedule", world.path(str(number), "r.yaml"), code=2, says=says[:1] if number < 4 else ())
    for number in (0, 1):
        daemon = world.start(1, "--run", world.path(str(number), "r.yaml"), wait=False, state=f"state-{number}")
        need(daemon.wait_end(30) == 2, f"--run of a wrong recipe ended with {daemon.process.returncode}")
        need(all(word in daemon.said() for word in cases[number][1]), f"--run says {daemon.said()[-400:]}")


@bounded(60)
def test_usage(world):
    for words in (("sttaus",), (), ("train",), ("checkpoint", "sav"), ("status", "--nonsense"), ("-o", "xml", "status"),
                  ("compare", "recipe.yaml"), ("wait", "--step", "soon")):
        result = world.refused(*words, code=2)
        need(not result.out, f"{words}: wrong usage prints data")
    need("status" in world.refused("sttaus", code=2).err, "no nearest command is named")
    world.ctl("status", code=3)
    world.ctl("--connect", "unix:" + world.path("nobody.sock"), "status", code=3)


@bounded(60)
def test_broken_configs(world):
    cases = [("{", "config"), ("[]", "config"), (json.dumps({**TINY, "hidden_size": -1}), "hidden_size"),
             (json.dumps({**TINY, "num_key_value_heads": 7}), "num_key_value_heads"),
             (json.dumps({**TINY, "num_hidden_layers": 1e9}), "num_hidden_layers"),
             (json.dumps({k: v for k, v in TINY.items() if k != "vocab_size"}), "vocab_size"),
             (json.dumps({**TINY, "model_type": "llama"}), "llama")]
    for number, (text, word) in enumerate(cases):
        path = world.write(f"broken-{number}/config.json", text)
        daemon = world.start(2, "--init", path, init=False, wait=False, state=f"state-{number}")
        code = daemon.wait_end(20)
        need(code != 0, f"a broken config was taken: {text[:60]}")
        need(word in daemon.said(), f"the refusal does not say {word}: {daemon.said()[-400:]}")
        need("Traceback" not in daemon.said() and "invariant" not in daemon.said().lower(), f"it crashed: {daemon.said()[-400:]}")


@bounded(60)
def test_unusable_data(world):
    for name, text in (("empty.jsonl", ""), ("broken.jsonl", "{\"messages\": [\n"), ("roles.jsonl", '{"messages": [{"role": "user"}]}\n'),
                       ("unlabelled.jsonl", '{"messages": [{"role": "user", "content": "no answer"}]}\n')):
        world.refused("data", "prepare", world.write(name, text), "-o", world.path("bad"), code=None, says=())
        result = world.ctl("data", "show", world.path("bad"), code=None)
        need(result.code != 0, f"{name} made a dataset")
    world.refused("data", "prepare", world.path("absent.jsonl"), "-o", world.path("bad"), code=None, says=("absent.jsonl",))


@bounded(120)
def test_a_damaged_dataset(world):
    world.dataset()
    world.start(2)
    for file in sorted(os.listdir(world.path("data"))):
        shutil.rmtree(world.path("cut"), ignore_errors=True)
        shutil.copytree(world.path("data"), world.path("cut"))
        path = world.path("cut", file)
        os.truncate(path, os.path.getsize(path) // 2)
        world.refused("train", world.recipe("cut.yaml", data=world.path("cut")), code=1)
    need(world.status()["state"] == "idle", "a damaged dataset left another state")


@bounded(180)
def test_a_damaged_checkpoint(world):
    """One flipped bit or one cut file, in any file of it: refused, named, and the model in memory unharmed."""
    world.dataset()
    world.start(2)
    world.train(world.recipe())
    path = world.json("checkpoint", "save", "whole")["path"]
    weights = world.weights("weights")
    files = [os.path.join(folder, file) for folder, _, names in os.walk(path) for file in names if file != "verified.json"]  # the mark that it was read through once
    need(files, "the checkpoint has no files")
    for number, file in enumerate(sorted(files)):
        with open(file, "rb") as data:
            good = data.read()
        for kind in ("flip", "cut"):
            bad = bytearray(good)
            if kind == "flip":
                bad[len(bad) * 2 // 3] ^= 0x10
            else:
                bad = bad[:len(bad) // 2]
            with open(file, "wb") as data:
                data.write(bad)
            world.refused("checkpoint", "verify", "whole", code=1)
            world.refused("checkpoint", "load", "whole", code=1)
        with open(file, "wb") as data:
            data.write(good)
    need(world.weights("still") == weights, "a refused load changed weights")
    world.ctl("checkpoint", "load", "whole")
    need(world.weights("again") == weights, "the checkpoint does not hold the weights")


@bounded(90)
def test_a_damaged_manifest_in_the_list(world):
    """Listed as damaged, with the reason; nothing is known of its numbers."""
    world.start(1)
    folders = [world.json("checkpoint", "save", name)["path"] for name in ("good", "cut", "flipped")]
    os.truncate(os.path.join(folders[1], "manifest.json"), 40)
    shard = next(name for name in sorted(os.listdir(folders[2])) if name.endswith(".safetensors"))
    with open(os.path.join(folders[2], shard), "r+b") as data:
        data.seek(-1, os.SEEK_END)
        last = data.read(1)
        data.seek(-1, os.SEEK_END)
        data.write(bytes([last[0] ^ 1]))
    world.refused("checkpoint", "verify", "flipped")
    rows = {row["name"]: row for row in world.json("checkpoint", "list")["checkpoints"]}
    need(rows["good"]["damaged"] == "" and rows["good"]["step"] == 0, f"good: {rows['good']}")
    need(rows["cut"]["damaged"] and rows["cut"]["step"] is None and rows["cut"]["bytes"] is None, f"cut: {rows['cut']}")
    need(rows["flipped"]["damaged"] and rows["flipped"]["health"] == "corrupt", f"flipped: {rows['flipped']}")
    table = world.ctl("checkpoint", "list").out
    need(" -1" not in table and "manifest.json" in table, f"the table: {table}")


@bounded(120)
def test_a_start_with_damaged_checkpoints(world):
    """The one before the damaged one is taken, which is listed as corrupt from then on; where none is whole, that is said."""
    daemon = world.start(2)
    folders = [world.json("checkpoint", "save", name)["path"] for name in ("first", "flipped", "short")]
    daemon.end()
    for folder in folders[1:]:
        path = os.path.join(folder, "shard-00000.safetensors")
        with open(path, "r+b") as data:
            data.seek(-1, os.SEEK_END)
            last = data.read(1)
            data.seek(-1, os.SEEK_END)
            data.write(bytes([last[0] ^ 1]))
        if folder == folders[2]:
            os.truncate(path, os.path.getsize(path) // 2)
    daemon = world.start(2, init=False)
    need(world.status()["state"] == "idle", f"came back {world.status()['state']}")
    need("flipped is not whole" in daemon.said() and "short is not whole" in daemon.said(), f"no warning: {daemon.said()}")
    rows = {row["name"]: row["health"] for row in world.json("checkpoint", "list")["checkpoints"]}
    need(rows == {"first": "verified", "flipped": "corrupt", "short": "corrupt"}, f"listed as {rows}")
    daemon.end()
    for folder in folders:
        os.truncate(os.path.join(folder, "manifest.json"), 40)
    daemon = world.start(2, init=False)
    need(world.status()["state"] == "empty", f"came back {world.status()['state']}")
    need(" is whole, of 3 there" in daemon.said(), f"no warning: {daemon.said()}")
    world.refused("checkpoint", "load", says=("of 3 there",))


@bounded(120)
def test_a_disk_that_is_full(world):
    """Files may not grow beyond a few kilobytes, as on a full disk: refused, nothing half-written, the state unharmed."""
    world.dataset()
    daemon = world.start(2)
    world.train(world.recipe())
    weights = world.weights("before")
    for pid in daemon.pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (30000, resource.RLIM_INFINITY))
    world.refused("checkpoint", "save", "too-large", code=1)
    world.refused("export", world.path("too-large"), code=1)
    for pid in daemon.pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    names = [row["name"] for row in world.json("checkpoint", "list")["checkpoints"]]
    need("too-large" not in names, "a half-written checkpoint is listed")
    need(world.status()["state"] == "idle", f"a full disk left {world.status()['state']}")
    need(world.weights("after") == weights, "a full disk changed weights")
    world.ctl("checkpoint", "save", "too-large")  # and with room it works
    world.ctl("checkpoint", "verify", "too-large")


@bounded(120)
def test_no_run_is_lost_on_a_full_disk(world):
    """Where its last checkpoint cannot be written a run stays, paused: at its own end, at stop and at shutdown."""
    world.dataset()
    daemon = world.start(2)

    def room(bytes_):
        for pid in daemon.pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (bytes_, resource.RLIM_INFINITY))

    world.ctl("train", world.recipe(steps=100000))
    world.ctl("wait", "--step", "3")
    world.ctl("pause")
    at = world.status()["step"]
    room(30000)
    world.refused("shutdown", code=1, says=("make room",))
    world.refused("stop", code=1, says=("make room",))
    status = world.status()
    need(status["state"] == "paused" and status["step"] == at and status["run"] == "run-0001", f"a full disk left {status}")
    room(resource.RLIM_INFINITY)
    world.ctl("stop")
    world.ctl("train", world.recipe(steps=4))
    world.ctl("wait", "--state", "idle")
    room(30000)
    world.ctl("train", world.recipe(steps=5))
    world.ctl("wait", "--state", "paused")
    need(world.status()["step"] == 5, "it paused before its end")
    room(resource.RLIM_INFINITY)
    world.ctl("resume")
    world.ctl("wait", "--state", "idle")
    names = [row["name"] for row in world.json("checkpoint", "list")["checkpoints"] if row["health"] == "verified"]
    need(f"run-0001-step-{at:06d}" in names and "run-0003-step-000005" in names, f"kept: {names}")


@bounded(90)
def test_cutoff(world):
    """Above every row it changes nothing, silently; rows beyond the model's positions or max_tokens are refused."""
    world.dataset(rows=8)
    longest = world.json("data", "show", world.path("data"))["longest"]
    daemon = world.start(1)
    plain = world.train(world.recipe(steps=3))[0]["loss"]
    world.ctl("init", world.path("model", "config.json"))
    said = world.ctl("train", world.recipe(steps=3, cutoff=32768))
    need("cutoff" not in said.err and "longest" not in said.err, f"a harmless cutoff makes noise: {said.err}")
    world.ctl("wait")
    need(world.events()[0]["loss"] == plain, "a cutoff above every row changed the first loss")
    world.refused("train", world.recipe(steps=3, max_tokens=longest - 1), says=("max_tokens", str(longest)))
    daemon.end()
    world.config(max_position_embeddings=longest - 1)
    world.start(1, "--init", world.path("model", "config.json"), init=False, state="short")
    world.refused("train", world.recipe(steps=3), says=("positions", f"cutoff: {longest - 1}"))
    world.refused("evaluate", world.path("data"), says=("positions",))
    world.train(world.recipe(steps=3, cutoff=longest - 1))


@bounded(60)
def test_a_long_socket_path(world):
    daemon = world.start(1, wait=False, state="x" * 120)
    need(daemon.wait_end(20) != 0, "a socket path over 100 bytes was accepted")
    need("100" in daemon.said() or "short" in daemon.said(), f"no shorter path is proposed: {daemon.said()[-300:]}")
