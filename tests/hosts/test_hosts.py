"""Several hosts: the same bits as one, and what happens when one of them is cut off."""
import json
import os
import signal
import subprocess
import time

from bounds import bounded
from harness import ROOT, need, send, until
from rig import Hosts as World  # noqa: F401 (run takes it)

STUCK_AFTER = 10
OURS = ("trainerd", "trainerd-guard", "mpirun", "orted")


def logged(daemon, *words):
    """The log's one line that holds all of these."""
    with open(os.path.join(daemon.state, "log"), encoding="utf-8") as log:
        lines = [line for line in log if all(word in line for word in words)]
    need(lines, f"the log has no line with {words}")
    return lines[0]


def left(world):
    return {host.name: names for host in world.hosts if (names := sorted(name for _, name in host.processes(*OURS)))}


def all_end(world, timeout, when):
    """Everything of ours on all hosts. Where it does not, what is left."""
    deadline = time.monotonic() + timeout
    while there := left(world):
        need(time.monotonic() < deadline, f"{when}, not ended after {timeout} s: {there}")
        time.sleep(0.1)


def cut(world, daemon, host):
    """Unplugs this host; all that belongs to the daemon, launchers too, is gone from all hosts within twice --stuck-after."""
    began = time.monotonic()
    host.plug("down")
    all_end(world, 2 * STUCK_AFTER, f"{host.name} cut off")
    world.said += f"-- {host.name} cut off: all ended after {time.monotonic() - began:.1f} s\n"
    need(daemon.wait_end(1) != 0, "the daemon ended with 0 although a host was cut off")


def train(world, daemon, step, **recipe):
    world.ctl("train", world.recipe(steps=100000, **recipe), daemon=daemon)
    world.ctl("wait", "--step", str(step), timeout=60, daemon=daemon)


@bounded(300)
def test_four_hosts_and_one_have_the_same_bits(world):
    world.connect(4)
    world.dataset()
    found = {}
    for name, hosts in (("one", world.hosts[:1]), ("four", world.hosts)):
        daemon = world.start_on(hosts, 4, "--init", world.config(), state=name)
        seen = world.status()
        need([(row["host"], row["ranks"]) for row in seen["hosts"]] == [(host.name, 4 // len(hosts)) for host in hosts],
             f"status has the hosts {seen['hosts']}")
        need(all(host.name in world.ctl("status").out for host in hosts), "status names its hosts")
        world.train(world.recipe(steps=6))
        found[name] = world.weights("weights-" + name)
        world.ctl("shutdown")
        need(daemon.wait_end(20) == 0, "shutdown")
        all_end(world, 10, "after an end in order")
    need(found["one"] == found["four"], "four hosts and one part in bits")
    for host in world.hosts[1:3]:
        checks = json.loads(world.run_on(host, world.trainctl, "-o", "json", "doctor", "--quick"))["checks"]
        row = next(check for check in checks if check["check"] == "network")
        need(row["state"] == "ok" and row["found"] == f"eth0 {host.address}", f"{host.name}'s network is {row}")


@bounded(300)
def test_a_host_is_cut_off_in_mid_step(world):
    """The error names it, and a daemon on the other three goes on from the last checkpoint."""
    world.connect(4)
    world.dataset()
    daemon = world.start_on(world.hosts, 4, "--init", world.config(), "--stuck-after", STUCK_AFTER)
    train(world, daemon, 3)
    world.ctl("checkpoint", "save", "kept")
    kept = {row["name"]: row for row in world.json("checkpoint", "list")["checkpoints"]}["kept"]["step"]
    cut(world, daemon, world.hosts[3])
    lines = [line for line in daemon.said().splitlines() if "host node3 (rank 3) has not answered" in line]
    need(lines and "checkpoints/kept step" in lines[0], f"the terminal does not name the host and the checkpoint: {daemon.said()[-1500:]}")
    need("host node0 (the" not in daemon.said() and not any(f"; host node{i} " in daemon.said() for i in range(3)), "others are named too")
    logged(daemon, " rank=3 ", "host=node3", "; host node0 (rank 0) has not answered")

    again = world.start_on(world.hosts[:3], 3, "--stuck-after", STUCK_AFTER)
    seen = world.status()
    need((seen["state"], seen["step"], seen["layout"]) == ("paused", kept, "d3t1p1c1"), f"the restart stands at {seen}")
    world.ctl("resume")
    world.ctl("wait", "--step", str(kept + 3), timeout=60)
    world.ctl("shutdown")
    need(again.wait_end(20) == 0, "shutdown of the restarted daemon")


@bounded(300)
def test_the_first_host_is_cut_off(world):
    """mpirun's and rank 0's own: the others say it in the log that all hosts share."""
    world.connect(3)
    world.dataset()
    daemon = world.start_on(world.hosts, 3, "--init", world.config(), "--stuck-after", STUCK_AFTER)
    train(world, daemon, 3)
    cut(world, daemon, world.hosts[0])
    logged(daemon, "host=node1", "; host node0 (rank 0) has not answered")
    logged(daemon, "host=node0", "; host node1 (rank 1) has not answered", "; host node2 (rank 2) has not answered")


@bounded(300)
def test_a_host_is_cut_off_from_an_idle_daemon(world):
    """No collective waits for it, so the hosts' own asking has to notice."""
    world.connect(3)
    daemon = world.start_on(world.hosts, 3, "--init", world.config(), "--stuck-after", STUCK_AFTER)
    cut(world, daemon, world.hosts[1])
    logged(daemon, "lost contact host=node0; host node1 (rank 1) has not answered")
    logged(daemon, "lost contact host=node1; host node0 (rank 0) has not answered")


@bounded(300)
def test_a_rank_is_stopped_on_another_host(world):
    """It is named from every host, although its own host answers."""
    world.connect(2)
    world.dataset()
    daemon = world.start_on(world.hosts, 4, "--init", world.config(), "--stuck-after", STUCK_AFTER)
    train(world, daemon, 3)
    victim = world.rank(3)
    send(victim, signal.SIGSTOP)
    all_end(world, 2 * STUCK_AFTER, "a rank stopped")
    need(daemon.wait_end(1) != 0, "the daemon ended with 0 although a rank was stopped")
    need("; rank 3 on host node1 is stopped" in daemon.said() or "; rank 3 (pid " in daemon.said(), f"who? {daemon.said()[-1500:]}")


@bounded(300)
def test_a_killed_rank_on_another_host_ends_all(world):
    world.connect(2)
    world.dataset()
    daemon = world.start_on(world.hosts, 4, "--init", world.config(), "--stuck-after", 300)
    train(world, daemon, 3)
    send(world.rank(3), signal.SIGKILL)
    need(daemon.wait_end(20) != 0, "the daemon ended with 0 after a rank was killed")
    all_end(world, 10, "a rank killed")
    logged(daemon, "rank 3 (pid ", ", host node1) died: ", "SIGKILL")


@bounded(300)
def test_a_short_outage_is_no_end(world):
    world.connect(2)
    world.dataset()
    daemon = world.start_on(world.hosts, 2, "--init", world.config(), "--stuck-after", 30)
    train(world, daemon, 3)
    world.hosts[1].plug("down")
    time.sleep(2)
    world.hosts[1].plug("up")
    world.ctl("wait", "--step", str(world.status()["step"] + 5), timeout=25)
    need(world.status()["state"] == "running" and "has not answered" not in daemon.said(), f"it says {daemon.said()[-800:]}")


@bounded(300)
def test_sigusr1_saves_on_all_hosts(world):
    """What a batch system sends before its limit, to mpirun: the step is finished, saved, exit 0; a restart goes on there."""
    world.connect(2)
    world.dataset()
    daemon = world.start_on(world.hosts, 2, "--init", world.config())
    train(world, daemon, 3)
    send(world.hosts[0].processes("mpirun")[0][0], signal.SIGUSR1)
    need(daemon.wait_end(30) == 0, f"SIGUSR1 to mpirun did not end in order: {daemon.said()[-800:]}")
    all_end(world, 10, "after an end in order")
    world.start_on(world.hosts, 2)
    seen = world.status()
    need(seen["state"] == "paused" and seen["step"] >= 3, f"the restart stands at {seen}")
    world.ctl("resume")
    world.ctl("wait", "--step", str(seen["step"] + 2), timeout=60)


@bounded(300)
def test_a_launcher_without_ranks_loses_a_host(world):
    """mpirun on a login node, or in a pod of its own, by deploy/launch: it ends as well, names the host, and started again goes on."""
    world.connect(4)
    world.dataset()
    path = os.path.dirname(world.trainerd) + ":" + os.path.dirname(world.trainctl) + ":" + os.environ["PATH"]

    def launch(hosts, log):
        with open(world.path(log), "w", encoding="utf-8") as out:
            words = [*world.hosts[0].enter(), os.path.join(ROOT, "deploy", "launch"), world.path("state"),
                     *world.mpi_options(hosts, len(hosts)), "-x", "PATH", "--", "--run", recipe, "--init", world.config(), "--threads", "1",
                     "--stuck-after", str(STUCK_AFTER)]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, "PATH": path})
        world.others.append(process)
        return process

    def at_step(step):
        return world.ctl("wait", "--step", str(step), "--timeout", "20", code=None, env=there).code == 0

    there = {"TRAINERD_CONNECT": "unix:" + world.path("state", "trainerd.sock")}
    recipe = world.recipe(steps=100000, checkpoint={"every": 2})
    first = launch(world.hosts[1:], "first.txt")
    until(lambda: at_step(4), 60, "four steps")
    world.hosts[3].plug("down")
    all_end(world, 2 * STUCK_AFTER, "node3 cut off")
    need(first.wait(5) not in (0, 1, 2), f"the launch ended with {first.returncode}")
    with open(world.path("first.txt"), encoding="utf-8") as said:
        need("on node node3" in said.read(), "mpirun does not name node3")
    with open(world.path("state", "log"), encoding="utf-8") as said:
        need("; host node3 (rank 2) has not answered" in said.read(), "the log does not name node3")
    second = launch(world.hosts[1:3], "second.txt")
    until(lambda: at_step(6), 60, "a step after the last checkpoint")
    need(world.ctl("status", env=there).out.find("d2t1p1c1") > 0, "the restart is not on two hosts")
    with open(f"/proc/{world.hosts[0].processes('mpirun')[0][0]}/stat", encoding="utf-8") as stat:
        parent = int(stat.read().rpartition(")")[2].split()[1])
    send(parent, signal.SIGTERM)
    need(second.wait(30) == 75, f"SIGTERM to the launch ended with {second.returncode}, wanted 75")
