"""The files of deploy/ for schedulers: checked against what they are written for, and done what they do, with the scheduler left out."""
import configparser
import os
import re
import shutil
import signal
import subprocess

from bounds import bounded
from harness import ROOT, Skip, need, send, until

DEPLOY = os.path.join(ROOT, "deploy")
HERE = os.path.dirname(os.path.abspath(__file__))
UNIT = os.path.join(DEPLOY, "systemd", "trainerd.service")
SBATCH = os.path.join(DEPLOY, "slurm", "trainerd.sbatch")
MPIJOB = os.path.join(DEPLOY, "kubernetes", "trainerd.yaml")

# The long options of sbatch that may stand in a script (its manual, Slurm 23.11); true: with a value, None: the value is optional.
SBATCH_OPTIONS = {**dict.fromkeys(
    "account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container container-id core-spec "
    "cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency distribution error exclude export export-file "
    "extra extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint input job-name "
    "licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile nodelist nodes ntasks "
    "ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output partition power prefer priority profile qos "
    "reservation signal sockets-per-node switches thread-spec threads-per-core time time-min tmp tres-per-task uid wait-all-nodes "
    "wckey wrap".split(), True), **dict.fromkeys("exclusive get-user-env nice propagate".split(), None), **dict.fromkeys(
        "contiguous hold ignore-pbs kill-on-invalid-dep no-kill no-requeue overcommit oversubscribe parsable quiet reboot requeue spread-job "
        "test-only use-min-nodes verbose wait".split(), False)}


def run(*words, **options):
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60, **options)


def shell_is_sound(name, text):
    done = run("shellcheck", "--shell=sh", "/dev/stdin") if text is None else subprocess.run(
        ["shellcheck", "--shell=sh", "-"], input=text, capture_output=True, text=True, check=False, timeout=60)
    need(done.returncode == 0, f"{name}: {done.stdout}")


def wants(program):
    if not shutil.which(program):
        raise Skip(f"{program} is not installed (deploy/install test)")


# --- what the files say ------------------------------------------------------------------------------------------------


def verify(path):
    """What systemd-analyze has to say, which is nothing for a sound unit; its exit status says less."""
    done = run("systemd-analyze", "verify", "--man=no", path)
    return (done.stdout + done.stderr).strip()


@bounded(60)
def test_the_systemd_unit(world):
    wants("systemd-analyze")
    said = verify(UNIT)
    if "Failed to" in said and "trainerd.service" not in said:
        raise Skip(f"systemd-analyze does not work here: {said.splitlines()[0]}")
    need(not said, f"systemd-analyze verify: {said}")
    with open(UNIT, encoding="utf-8") as text:
        unit = text.read()
    for there, wrong in (("KillMode=mixed", "KillMode=mixd"), ("TimeoutStopSec=10min", "TimeoutStopSec=soon"),
                         ("RestartSec", "RestartSecs"), ("[Service]", "[Services]")):
        need(there in unit and verify(world.write("wrong/trainerd.service", unit.replace(there, wrong))), f"{wrong} is not noticed")
    service = read_unit()
    need(service["KillSignal"] == "SIGUSR1" and service["KillMode"] == "mixed", f"stopped by {service['KillSignal']}, {service['KillMode']}")


def read_unit():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(UNIT)
    return unit["Service"]


def sbatch_mistakes(text):
    """Options that sbatch does not have, or whose value is missing, one too many, or no value of theirs."""
    patterns = {"signal": r"([RB]*:)?(USR1|USR2|TERM|INT|[0-9]+)(@[0-9]+)?", "time": r"([0-9]+-)?[0-9]+(:[0-9]+){0,2}",
                "open-mode": "append|truncate", "nodes": "[0-9]+(-[0-9]+)?", "ntasks-per-node": "[0-9]+"}
    lines, body = text.splitlines(), False
    for number, line in enumerate(lines, 1):
        if body and line.startswith("#SBATCH"):
            yield f"line {number}: after the first command sbatch does not read it"
        body = body or bool(line and not line.startswith("#"))
        found = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
        if line.startswith("#SBATCH") and not found:
            yield f"line {number}: {line} is no option"
        if not found:
            continue
        option, value = found.groups()
        if option not in SBATCH_OPTIONS:
            yield f"line {number}: sbatch has no --{option}"
        elif SBATCH_OPTIONS[option] is not None and SBATCH_OPTIONS[option] != (value is not None):
            yield f"line {number}: --{option} {'wants' if SBATCH_OPTIONS[option] else 'takes no'} value"
        elif option in patterns and not re.fullmatch(patterns[option], value):
            yield f"line {number}: {value} is no value of --{option}"


@bounded(60)
def test_the_slurm_script(world):
    with open(SBATCH, encoding="utf-8") as source:
        text = source.read()
    need(text.startswith("#!"), "sbatch wants an interpreter in the first line")
    need(not list(sbatch_mistakes(text)), f"{list(sbatch_mistakes(text))}")
    for there, wrong in (("--requeue", "--requeu"), ("--requeue", "--requeue=yes"), ("B:USR1@300", "B:USR9@300"), ("24:00:00", "a day"),
                         ("#SBATCH --nodes=4", "true\n#SBATCH --nodes=4")):
        need(there in text and list(sbatch_mistakes(text.replace(there, wrong))), f"{wrong} is not noticed")
    need("--signal=B:USR1@300" in text and "--requeue" in text, "it is not warned of its limit, or not put back")
    for words in (["bash", "-n", SBATCH], ["shellcheck", "-x", SBATCH]):
        wants(words[0])
        done = run(*words)
        need(done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}")


def lint(*change):
    return run("/usr/bin/python3", os.path.join(HERE, "lint_mpijob.py"), MPIJOB, *change)


@bounded(60)
def test_the_kubernetes_job(world):
    if run("/usr/bin/python3", "-c", "import jsonschema, yaml").returncode != 0:
        raise Skip("python3-jsonschema or python3-yaml is not installed (deploy/install test)")
    done = lint()
    need(done.returncode == 0, done.stdout + done.stderr)
    wants("shellcheck")
    for line in done.stdout.splitlines():
        shell_is_sound("preStop", line.removeprefix("preStop: ") + "\n")
    worker = "spec.mpiReplicaSpecs.Worker.template.spec."
    for change in (("apiVersion", "kubeflow.org/v1"), ("spec.slotPerWorker", "8"), ("spec.runPolicy.cleanPodPolicy", "Some"),
                   ("spec.mpiReplicaSpecs.Workers", "{}"), (worker + "terminationGracePeriod", "600"), (worker + "terminationGracePeriodSeconds", "30"),
                   (worker + "containers.0.lifecycle.preStop.exec.command", "[/bin/true]"), (worker + "containers.0.volumeMounts.0.name", "share"),
                   (worker + "containers.0.image", "other:1"), (worker + "volumes.1.emptyDir.medium", "memory"), ("metadata.name", "other")):
        done = lint(*change)
        need(done.returncode == 1 and done.stdout.strip(), f"{change} is not noticed: {done.stdout}{done.stderr}")


# --- what they do --------------------------------------------------------------------------------------------------------


class Job:
    """A script that starts mpirun, with the programs of this build in its PATH: a daemon of the world's, as others are."""

    def __init__(self, world, words, log, **environment):
        self.world, self.log = world, world.path(log)
        self.address = "unix:" + world.path("state", "trainerd.sock")
        programs = [world.path("bin"), os.path.dirname(world.trainerd), os.path.dirname(world.trainctl)]
        mpi = {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMP_WAIT_POLICY": "passive"}
        with open(self.log, "w", encoding="utf-8") as out:
            self.process = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=world.folder,
                                            start_new_session=True, env={**os.environ, **mpi, "PATH": ":".join(programs) + ":" + os.environ["PATH"], **environment})
        world.daemons.append(self)

    def said(self):
        with open(self.log, encoding="utf-8") as text:
            return text.read()

    def at_step(self, step):
        """Waits until its daemon is there."""
        need(self.world.ctl("--timeout", "30", "wait", "--step", step, code=None, timeout=40).code == 0,
             f"step {step} is not reached: {self.said()[-800:]}")
        return self.world.status()

    def end(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # mpirun is in it; the ranks end with that
            self.process.wait(5)

    def ends(self, code, *words):
        try:
            found = self.process.wait(60)
        except subprocess.TimeoutExpired:
            found = "nothing: it goes on"
        need(found == code, f"ended with {found}, wanted {code}: {self.said()[-1200:]}")
        for word in words:
            need(word in self.said(), f"it does not say {word!r}: {self.said()[-800:]}")


def launch(world, log, *options, ranks=2):
    return Job(world, [os.path.join(DEPLOY, "launch"), world.path("state"), "-n", ranks, "--", "--threads", 1, *options], log)


@bounded(150)
def test_a_launch_that_is_stopped_goes_on(world):
    """USR1 and TERM: save, exit 75, go on, on any number of ranks; at its end 0, and 0 at once when it is started again."""
    world.dataset()
    options = ("--run", world.recipe(steps=600), "--init", world.config(), "--lanes", 8)
    first = launch(world, "first.txt", *options)
    first.at_step(3)
    send(first.process.pid, signal.SIGUSR1)
    first.ends(75, "goes on")
    second = launch(world, "second.txt", *options, ranks=1)
    reached = second.at_step(20)
    need(reached["run"] == "run-0001", f"another run was begun: {reached['run']}")
    send(second.process.pid, signal.SIGTERM)
    second.ends(75, "going on from the newest checkpoint", "goes on")
    launch(world, "third.txt", *options).ends(0)
    launch(world, "fourth.txt", *options).ends(0, "is done")


@bounded(90)
def test_a_launch_that_trainctl_stopped_stays_stopped(world):
    world.dataset()
    options = ("--run", world.recipe(steps=100000), "--init", world.config())
    first = launch(world, "first.txt", *options)
    first.at_step(3)
    world.ctl("stop")
    first.ends(5)
    launch(world, "second.txt", *options).ends(5, "is stopped")


@bounded(60)
def test_a_launch_that_makes_no_sense(world):
    for words in ((), (world.path("state"),), (world.path("state"), "-n", "1")):
        Job(world, [os.path.join(DEPLOY, "launch"), *words], "usage.txt").ends(2, "usage: launch")
    launch(world, "nonsense.txt", "--layout", "d3").ends(2, "d3")


@bounded(150)
def test_a_slurm_job_is_put_back_before_its_limit(world):
    """The script, with a scontrol that takes notes."""
    world.dataset()
    os.makedirs(world.path("root", "build"))
    os.symlink(DEPLOY, world.path("root", "deploy"))
    os.symlink(os.path.dirname(os.path.dirname(world.trainerd)), world.path("root", "build", "release"))
    os.chmod(world.write("bin/scontrol", '#!/bin/sh\necho "$*" >>' + world.path("notes") + "\n"), 0o755)
    notes = world.write("notes", "")

    def job(restarts, recipe):
        return Job(world, ["bash", SBATCH, recipe, world.path("state"), world.path("hub")], f"job-{restarts}.txt", SLURM_JOB_ID="77",
                   SLURM_SUBMIT_DIR=world.path("root"), SLURM_NTASKS_PER_NODE="2", SLURM_RESTART_COUNT=str(restarts),
                   TRAINERD_THREADS="1")

    world.config()
    world.start(1)
    world.weights("hub")
    world.ctl("shutdown")
    shutil.rmtree(world.path("state"))
    recipe = world.recipe(steps=600)
    first = job(0, recipe)
    first.at_step(3)
    send(first.process.pid, signal.SIGUSR1)
    first.ends(0, "back to the queue")
    with open(notes, encoding="utf-8") as text:
        need(text.read() == "requeue 77\n", "scontrol was not asked to put it back")
    job(1, recipe).ends(0, "going on from the newest checkpoint")
    with open(notes, encoding="utf-8") as text:
        need(text.read() == "requeue 77\n", "a job that is done was put back")


@bounded(90)
def test_the_units_command_and_signal(world):
    """What systemd does with it: ExecStart, KillSignal to mpirun alone, exit 0, ExecStart again."""
    service = read_unit()
    state = world.path("state")
    words = service["ExecStart"].replace("${RANKS}", "2").replace("/var/lib/trainerd", state).split()
    need(words[0] == "/usr/bin/mpirun" and words[words.index("--state-dir") + 1] == state, f"ExecStart is {words}")
    mpi = run("bash", "-c", '. "$0"/mpi-env && mpi_env 2 && env -0', DEPLOY).stdout
    mpi = dict(pair.split("=", 1) for pair in mpi.split("\0") if pair.startswith("OMPI_"))
    world.dataset()
    first = Job(world, words, "first.txt", TRAINERD_INIT=world.config(), **mpi)
    until(lambda: " ready: " in first.said(), 30, "ready")
    world.ctl("train", world.recipe(steps=100000))
    first.at_step(3)
    send(first.process.pid, getattr(signal, service["KillSignal"]))
    first.ends(0)
    second = Job(world, words, "second.txt", **mpi)
    until(lambda: " ready: " in second.said(), 30, "ready")
    seen = world.json("status")
    need(seen["state"] == "paused" and seen["step"] >= 3, f"it came back {seen['state']} at step {seen['step']}")
    send(second.process.pid, getattr(signal, service["KillSignal"]))
    second.ends(0)
