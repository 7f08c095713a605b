"""What every end-to-end test stands on: a daemon under mpirun in a folder of its own, trainctl as its users run it.

Only the standard library. Every wait has an end, every process that a test started ends with it, by its id, and what a
daemon wrote to its terminal is kept and shown when the test fails.
"""
import json
import os
import random
import signal
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

# A Qwen3 of some 20 thousand parameters: two layers, grouped heads, tied or not.
TINY = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 64, "vocab_size": 259,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True, "max_position_embeddings": 512,
    "hidden_act": "silu", "attention_bias": False, "initializer_range": 0.02,
}

POLICIES = ("fp32-master", "fp32-lean", "fp32-q8", "fp24-q8", "fp32-split", "bf16-kahan", "bf16-sr", "bf16")


class Failure(Exception):
    """A demand that was not met, in a sentence."""


class Skip(Exception):
    """What this machine lacks for a test, in a sentence."""


def need(condition, sentence):
    if not condition:
        raise Failure(sentence)


class Result:
    def __init__(self, code, out, err, seconds):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds

    def json(self):
        try:
            return json.loads(self.out)
        except ValueError:
            raise Failure(f"not one JSON value: {self.out[:300]!r}; stderr {self.err[:300]!r}") from None

    def lines(self):
        return [json.loads(line) for line in self.out.splitlines() if line.strip()]


class World:
    """One test's folder, binaries, daemons."""

    def __init__(self, build, folder):
        self.folder = folder
        self.trainerd = os.path.join(build, "daemon", "trainerd")
        self.trainctl = os.path.join(build, "ctl", "trainctl")
        self.daemons = []
        self.others = []
        self.said = ""

    # --- files ---------------------------------------------------------------------------------------------------
    def path(self, *names):
        return os.path.join(self.folder, *names)

    def write(self, name, text):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w", encoding="utf-8") as out:
            out.write(text)
        return self.path(name)

    def config(self, **changes):
        return self.write("model/config.json", json.dumps({**TINY, **changes}))

    def dataset(self, rows=48, seed=1, name="data"):
        """Small chats that a small model can learn; made by trainctl, as users make theirs."""
        choose = random.Random(seed)
        words = "red green blue one two three cat dog sun moon".split()
        lines = []
        for i in range(rows):
            answer = " ".join(choose.choice(words) for _ in range(choose.randint(1, 4)))
            lines.append(json.dumps({"messages": [{"role": "user", "content": f"say {i}"},
                                                  {"role": "assistant", "content": answer}]}))
        source = self.write(name + ".jsonl", "\n".join(lines) + "\n")
        self.ctl("data", "prepare", source, "-o", self.path(name))
        return self.path(name)

    def recipe(self, name="recipe.yaml", data=None, **changes):
        keys = {"data": data or self.path("data"), "steps": 12, "global_batch": 8, "max_tokens": 512,
                "optimizer": {"lr": 3e-3, "weight_decay": 0.01, "clip": 1.0},
                "schedule": {"kind": "cosine", "warmup_ratio": 0.1}, **changes}
        return self.write(name, json.dumps({k: v for k, v in keys.items() if v is not None}, indent=1))

    # --- processes -------------------------------------------------------------------------------------------------
    def start(self, ranks=2, *options, init=True, state="state", wait=True, env=None):
        daemon = Daemon(self, ranks, list(options) + (["--init", self.config()] if init else []), state, env)
        self.daemons.append(daemon)
        if wait:
            daemon.wait_ready()
        return daemon

    def ctl(self, *words, code=0, timeout=60, daemon=None, json_out=False, env=None, cwd=None):
        """trainctl to its end. code None: any."""
        before = ["-o", "json"] if json_out else []
        environment = {**os.environ, "XDG_STATE_HOME": self.path("xdg"), **(env or {})}
        daemon = daemon or (self.daemons[-1] if self.daemons else None)
        if daemon is not None:
            environment["TRAINERD_CONNECT"] = daemon.address
        started = time.monotonic()
        try:
            done = subprocess.run([self.trainctl, *before, *map(str, words)], env=environment, timeout=timeout, check=False,
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=cwd or self.folder)
        except subprocess.TimeoutExpired:
            raise Failure(f"trainctl {' '.join(map(str, words))}: not done after {timeout} s") from None
        result = Result(done.returncode, done.stdout, done.stderr, time.monotonic() - started)
        self.said += f"$ trainctl {' '.join(map(str, before + list(words)))}  → {result.code}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        need(code is None or result.code == code,
             f"trainctl {' '.join(map(str, words))} ended with {result.code}, wanted {code}: {(result.err or result.out)[-600:]}")
        return result

    def json(self, *words, **options):
        return self.ctl(*words, json_out=True, **options).json()

    def refused(self, *words, code=1, says=(), **options):
        """A refusal: the exit status, a sentence on stderr that holds every word of `says`, nothing on stdout."""
        result = self.ctl(*words, code=code, **options)
        for word in says:
            need(word in result.err, f"{' '.join(map(str, words))}: the refusal does not say {word!r}: {result.err[:600]}")
        need(result.err.strip(), f"{' '.join(map(str, words))}: refused without a sentence")
        return result

    def spawn(self, *words, daemon=None, **options):
        """trainctl in the background."""
        environment = {**os.environ, "TRAINERD_CONNECT": (daemon or self.daemons[-1]).address}
        process = subprocess.Popen([self.trainctl, *map(str, words)], env=environment, stdin=subprocess.DEVNULL, cwd=self.folder,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        self.others.append(process)
        return process

    def train(self, recipe, *flags, timeout=120, code=0):
        """A whole run; its step events."""
        self.ctl("train", recipe, *flags, "--follow", timeout=timeout, code=code)
        return self.events()

    def run_long(self, *options, ranks=2, **recipe):
        """A daemon in the midst of a run whose end no test waits for."""
        daemon = self.start(ranks, *options)
        self.ctl("train", self.recipe(steps=1000000, **recipe), "--yes")
        self.ctl("wait", "--step", "2", timeout=60)
        return daemon

    def events(self, *flags):
        """Step events: whether they come as one array, one object with an array, or one a line."""
        out = self.ctl("metrics", *flags, json_out=True).out
        try:
            values = json.loads(out)
            values = values if isinstance(values, list) else values.get("steps", values.get("events", [values]))
        except ValueError:
            values = [json.loads(line) for line in out.splitlines() if line.strip()]
        return [event for event in values if "grad_norm" in event]

    def status(self, **options):
        return self.json("status", **options)

    def weights(self, name):
        """The bytes of an fp32 export, by file."""
        self.ctl("export", self.path(name), "--dtype", "fp32")
        return self.files(name)

    def files(self, name):
        found = {}
        for file in sorted(os.listdir(self.path(name))):
            if file.endswith(".safetensors"):
                with open(self.path(name, file), "rb") as data:
                    found[file] = data.read()
        need(found, f"no safetensors in {name}")
        return found

    def close(self):
        for process in self.others:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for daemon in self.daemons:
            daemon.end()


class Daemon:
    """mpirun and its ranks. before: words that run it, to put it elsewhere; mpi: more of mpirun's own options."""

    def __init__(self, world, ranks, options, state, env, before=(), mpi=()):
        self.world, self.ranks, self.state = world, ranks, world.path(state)
        self.address = "unix:" + os.path.join(self.state, "trainerd.sock")
        self.log = open(world.path(f"daemon-{len(world.daemons)}.txt"), "w+", encoding="utf-8")
        command = [*before, "bash", "-c", '. "$0"/deploy/mpi-env && mpi_env "$1" && shift && exec mpirun "$@"', ROOT, str(ranks),
                   "-n", str(ranks), *mpi, world.trainerd, "--state-dir", self.state, "--threads", "1", *map(str, options)]
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "XDG_STATE_HOME": world.path("xdg"), **(env or {})}
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
                                        env=environment, start_new_session=True)
        self.pids = []

    def said(self):
        with open(self.log.name, encoding="utf-8", errors="replace") as text:
            return text.read()

    def wait_ready(self, timeout=60):
        """Until it answers; a daemon that ended first is a failure that shows what it said."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            need(self.process.poll() is None, f"trainerd ended with {self.process.returncode}: {self.said()[-1500:]}")
            if " ready: " in self.said():  # it answers sooner, while it loads
                result = self.world.ctl("status", code=None, timeout=10, daemon=self)
                if result.code == 0:
                    self.pids = self.rank_pids()
                    return
            time.sleep(0.1)
        raise Failure(f"trainerd was not ready after {timeout} s: {self.said()[-1500:]}")

    def rank_pids(self):
        """The process ids of the ranks, in rank order: mpirun's own children."""
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8") as stat:
                    parent = int(stat.read().rpartition(")")[2].split()[1])
                if parent != self.process.pid:
                    continue
                with open(f"/proc/{name}/environ", "rb") as environ:
                    rank = dict(v.split(b"=", 1) for v in environ.read().split(b"\0") if b"=" in v).get(b"OMPI_COMM_WORLD_RANK")
                if rank is not None:
                    found.append((int(rank), int(name)))
            except (OSError, ValueError):
                continue
        return [pid for _, pid in sorted(found)]

    def wait_end(self, timeout):
        """Its exit status; a failure if it has not ended by then."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Failure(f"trainerd had not ended after {timeout} s: {self.said()[-1500:]}") from None

    def all_gone(self, timeout=10):
        deadline = time.monotonic() + timeout
        while any(os.path.exists(f"/proc/{pid}") and not is_zombie(pid) for pid in self.pids):
            need(time.monotonic() < deadline, f"ranks are still there after {timeout} s")
            time.sleep(0.1)

    def end(self):
        for pid in self.pids or self.rank_pids():  # a stopped rank hears nothing but SIGCONT and SIGKILL
            send(pid, signal.SIGCONT)
        if self.log.closed:
            return
        if self.process.poll() is None:
            send(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(8)
            except subprocess.TimeoutExpired:
                send(self.process.pid, signal.SIGKILL)
                self.process.wait(5)
        for pid in self.pids:
            if is_ours(pid, self.world.trainerd):
                send(pid, signal.SIGKILL)
        self.log.close()


def send(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def is_zombie(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def is_ours(pid, program):
    """A pid may have been given to someone else since."""
    try:
        return os.path.realpath(f"/proc/{pid}/exe") == os.path.realpath(program)
    except OSError:
        return False


def until(condition, timeout, sentence):
    deadline = time.monotonic() + timeout
    while not condition():
        need(time.monotonic() < deadline, f"not within {timeout} s: {sentence}")
        time.sleep(0.05)
