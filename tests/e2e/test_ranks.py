"""What happens to ranks: killed, stopped, too many of them; and to those who watch."""
import json
import os
import signal

from bounds import bounded
from harness import need, send, until


def said_once(daemon, *words, said=None):
    """The one line about a death: in the terminal and in the log, once each, with these words. Returns it."""
    with open(os.path.join(daemon.state, "log"), encoding="utf-8") as log:
        logged = [line for line in log if " died: " in line]
    lines = [line for line in (said or daemon.said()).splitlines() if " died: " in line]
    need(len(lines) == 1, f"wanted one line about the death, got {len(lines)}: {daemon.said()[-1500:]}")
    need(len(logged) == 1 and lines[0] in logged[0], f"the log says otherwise: {logged}")
    for word in words:
        need(word in lines[0], f"the line does not say {word!r}: {lines[0]}")
    return lines[0]


@bounded(90)
def test_a_killed_rank_ends_all(world):
    world.dataset()
    for victim in (1, 0):
        daemon = world.start(2, state=f"state-{victim}")
        world.ctl("train", world.recipe(steps=100000))
        world.ctl("wait", "--step", "3", timeout=60)
        if victim == 1:
            world.ctl("checkpoint", "save", "kept")
        send(daemon.pids[victim], signal.SIGKILL)
        need(daemon.wait_end(10) != 0, "the daemon ended with 0 after a rank was killed")
        daemon.all_gone()
        line = said_once(daemon, f"rank {victim} (pid {daemon.pids[victim]}, host ", "SIGKILL", "all ranks end")
        need(("checkpoints/kept step " if victim == 1 else "no checkpoint") in line, f"which checkpoint stands? {line}")


@bounded(90)
def test_a_killed_rank_ends_an_idle_daemon(world):
    for victim in (2, 0):
        daemon = world.start(3, state=f"state-{victim}")
        send(daemon.pids[victim], signal.SIGKILL)
        need(daemon.wait_end(10) != 0, "an idle daemon went on without a rank")
        daemon.all_gone()
        said_once(daemon, f"rank {victim} (pid {daemon.pids[victim]}, host ", "SIGKILL")


@bounded(120)
def test_the_journal_says_what_was_under_way(world):
    daemon = world.start(2)
    world.ctl("checkpoint", "save", "kept")
    world.spawn("evaluate", world.dataset(rows=20000, name="long"))
    until(lambda: world.status()["activity"].startswith("evaluating"), 60, "an evaluation is under way")
    send(daemon.pids[1], signal.SIGKILL)
    need(daemon.wait_end(10) != 0, "the daemon ended with 0 after a rank was killed")
    with open(os.path.join(daemon.state, "journal.jsonl"), encoding="utf-8") as journal:
        lines = [json.loads(line) for line in journal]
    need([(line["command"], line["outcome"]) for line in lines] ==
         [("checkpoint save", "begun"), ("checkpoint save", "done"), ("evaluate", "begun")], f"the journal: {lines}")


@bounded(90)
def test_a_crashing_rank_says_so_itself(world):
    world.dataset()
    daemon = world.start(2)
    world.ctl("train", world.recipe(steps=100000))
    world.ctl("wait", "--step", "3", timeout=60)
    send(daemon.pids[1], signal.SIGSEGV)
    need(daemon.wait_end(10) != 0, "the daemon ended with 0 after a rank crashed")
    daemon.all_gone()
    said_once(daemon, f"rank 1 (pid {daemon.pids[1]}, host ", "SIGSEGV", "(sequence ")


@bounded(90)
def test_a_dataset_cut_under_a_run(world):
    """Pages that a mapping has lost are a SIGBUS in the loader, on every rank; the line names the file. Where only a
    page's end is lost it reads as zeros, and the batch that has no labels any more says so."""
    for rows, left, words in ((2000, 4096, ("SIGBUS", "shortened")), (20, 16, ("dataset was changed",))):
        data = world.dataset(rows=rows, name=f"data{rows}")
        daemon = world.start(2, state=f"state-{rows}")
        world.ctl("train", world.recipe(data=data, steps=100000))
        world.ctl("wait", "--step", "3", timeout=60)
        file = os.path.join(data, next(name for name in os.listdir(data) if name.endswith(".safetensors")))
        os.truncate(file, left)
        need(daemon.wait_end(10) != 0, "the daemon ended with 0 after its dataset was cut")
        daemon.all_gone()
        said_once(daemon, *words, *([file] if left == 4096 else []))


@bounded(60)
def test_ranks_end_with_their_launcher(world):
    """kill -9 of mpirun: nobody is left to end the ranks, so they do it. Its terminal is gone: the log has the line."""
    daemon = world.start(2)
    send(daemon.process.pid, signal.SIGKILL)
    daemon.process.wait(5)
    daemon.all_gone()
    with open(os.path.join(daemon.state, "log"), encoding="utf-8") as log:
        lines = [line for line in log if " died: " in line]
    need(len(lines) == 1 and f"the launcher (pid {daemon.process.pid}, host " in lines[0], f"the log says {lines}")


@bounded(90)
def test_a_stopped_rank_ends_all(world):
    """SIGSTOP: the others' watchdogs see a collective without progress, say where and who, once, and end."""
    world.dataset()
    daemon = world.start(3, "--stuck-after", "4")
    world.ctl("train", world.recipe(steps=100000))
    world.ctl("wait", "--step", "3", timeout=60)
    send(daemon.pids[1], signal.SIGSTOP)
    need(daemon.wait_end(25) != 0, "the daemon ended with 0 although a rank was stopped")
    lines = [line for line in daemon.said().splitlines() if "no progress" in line]
    need(len(lines) == 1, f"wanted one line, got {len(lines)}: {daemon.said()[-1500:]}")
    for word in (f"rank 1 (pid {daemon.pids[1]}) is stopped", "operation=", "sequence="):
        need(word in lines[0], f"the line does not say {word!r}: {lines[0]}")
    need(lines[0].count("pid") == 1 and " died: " not in daemon.said(), f"others are named too: {daemon.said()[-1500:]}")
    send(daemon.pids[1], signal.SIGCONT)
    daemon.all_gone()


@bounded(60)
def test_a_second_daemon_is_refused(world):
    first = world.start(1)
    second = world.start(1, state="state", wait=False)
    need(second.wait_end(20) != 0, "a second daemon on the same folder ended with 0")
    need(str(first.pids[0]) in second.said(), f"the refusal does not name pid {first.pids[0]}: {second.said()[-500:]}")
    need(world.status(daemon=first)["state"] == "idle", "the first daemon was harmed")


@bounded(90)
def test_two_daemons_and_one_checkpoint_folder(world):
    """The second is refused with the first's pid; a later one with another state folder leaves the first's checkpoints alone."""
    world.dataset()
    shared = ("--checkpoint-dir", world.path("shared"))
    recipe = world.recipe(checkpoint={"every": 6, "keep": 1})
    first = world.start(1, *shared, state="one")
    world.train(recipe)
    second = world.start(1, *shared, state="two", wait=False)
    need(second.wait_end(20) != 0, "a second daemon with the same checkpoint folder ended with 0")
    need(f"process {first.pids[0]}" in second.said() and "--checkpoint-dir" in second.said(), f"the refusal: {second.said()[-500:]}")
    before = world.json("checkpoint", "list", daemon=first)["checkpoints"]
    need(before, "no checkpoint was saved")
    send(first.pids[0], signal.SIGKILL)  # and leaves no lock
    first.wait_end(10)
    world.start(1, *shared, state="two")
    run = world.train(recipe)[-1]["run"]
    after = {row["name"]: row for row in world.json("checkpoint", "list")["checkpoints"]}
    need(run == "run-0002" and f"{run}-step-000012" in after, f"{run} saved {sorted(after)}")
    need(all(after.get(row["name"]) == row for row in before), f"of {before} there is left {after}")


@bounded(60)
def test_a_killed_daemon_leaves_no_lock(world):
    first = world.start(1)
    send(first.pids[0], signal.SIGKILL)
    first.wait_end(10)
    world.start(1)


@bounded(60)
def test_a_wrong_number_of_ranks(world):
    for options in (("--layout", "d4"), ("--layout", "d3"), ("--layout", "d2t2")):
        daemon = world.start(2, *options, wait=False, state="state-" + options[1])
        code = daemon.wait_end(20)
        need(code != 0, f"{options} was accepted on two ranks")
        need(options[1] in daemon.said() or "rank" in daemon.said(), f"no sentence: {daemon.said()[-400:]}")


@bounded(90)
def test_what_is_not_built_says_so(world):
    for options in (("--listen", "tcp:127.0.0.1:7777"), ("--metrics", "127.0.0.1:9090"), ("--device", "cuda")):
        daemon = world.start(2, *options, wait=False, state="state" + options[0] + options[1].replace(":", "-"))
        code = daemon.wait_end(20)
        need(code == 2, f"{options} ended with {code}, wanted 2: {daemon.said()[-400:]}")
        need("trainerd: " in daemon.said() and "invariant" not in daemon.said(), f"{options}: no sentence: {daemon.said()[-400:]}")


@bounded(90)
def test_a_client_that_leaves_harms_nobody(world):
    world.dataset()
    world.start(2)
    world.ctl("train", world.recipe(steps=100000))
    follower = world.spawn("metrics", "--follow")
    world.ctl("wait", "--step", "5", timeout=60)
    follower.kill()
    follower.wait(5)
    at = world.status()["step"]
    world.ctl("wait", "--step", str(at + 5), timeout=60)
    training = world.spawn("wait", "--step", "1000000")
    training.terminate()  # not SIGINT, which programs started in the background may inherit as ignored
    training.wait(10)
    need(world.status()["state"] == "running", "a client that left took the run with it")


@bounded(90)
def test_what_expires_is_never_done(world):
    """While a rank stands still, a command that is not taken up before its deadline is withdrawn and journalled as such."""
    world.dataset()
    daemon = world.start(2)
    world.ctl("train", world.recipe(steps=1000000))
    world.ctl("wait", "--step", "3", timeout=60)
    send(daemon.pids[1], signal.SIGSTOP)
    result = world.refused("--timeout", "1", "pause", code=4)
    need("withdrawn" in result.err, f"what became of it is not said: {result.err}")
    send(daemon.pids[1], signal.SIGCONT)
    at = world.status()["step"]
    world.ctl("wait", "--step", str(at + 5), timeout=60)
    need(world.status()["state"] == "running", "an expired pause was done all the same")
    with open(os.path.join(daemon.state, "journal.jsonl"), encoding="utf-8") as journal:
        lines = journal.read().splitlines()
    need("expired" in lines[-1] and '"pause"' in lines[-1], f"the journal ends with {lines[-1]}")


@bounded(90)
def test_leaving_a_followed_run(world):
    """Ctrl-C while following leaves the run going and says so."""
    world.dataset()
    world.start(1)
    following = world.spawn("train", world.recipe(steps=100000), "--follow")
    until(lambda: world.status()["state"] == "running" and world.status()["step"] > 2, 30, "running")
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=10)
    need(world.status()["state"] == "running", "Ctrl-C stopped the run")
    need(err.strip(), "Ctrl-C said nothing")


@bounded(60)
def test_sigterm_stops_at_once(world):
    world.dataset()
    daemon = world.start(2)
    world.ctl("train", world.recipe(steps=100000))
    world.ctl("wait", "--step", "3", timeout=60)
    send(daemon.process.pid, signal.SIGTERM)
    need(daemon.wait_end(10) != 0, "SIGTERM ended with 0")
    daemon.all_gone()
    need(" died: " not in daemon.said(), f"a stop that was asked for is called a death: {daemon.said()[-800:]}")


@bounded(60)
def test_an_idle_daemon_sleeps(world):
    """Two idle seconds cost each rank less than a tenth of a second of processor time."""
    import time
    daemon = world.start(2)
    ticks = os.sysconf("SC_CLK_TCK")

    def used():
        total = 0
        for pid in daemon.pids:
            with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
                fields = stat.read().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / ticks

    time.sleep(1)
    before = used()
    time.sleep(2)
    need(used() - before < 0.2, f"two idle seconds used {used() - before:.2f} s")


@bounded(180)
def test_eight_ranks(world):
    """mpirun -n 8 trainerd, on however few cores: trains, audits, saves, ends."""
    world.dataset()
    daemon = world.start(8)
    events = world.train(world.recipe(steps=4), timeout=150)
    need(len(events) == 4 and world.status()["ranks"] == 8, "eight ranks did not make four steps")
    least = min(value for event in events for value in event["seconds"].values())
    need(least >= 0, f"a part of a step took {least} s")
    audit = world.json("audit")
    need({row["rank"] for row in audit["rows"]} == set(range(8)), "audit does not name all ranks")
    world.ctl("shutdown")
    need(daemon.wait_end(30) == 0, "shutdown of eight ranks")
