"""Several hosts on one machine: network namespaces joined by a bridge, each with a host name, processes, a /dev/shm and
an /etc/hosts of its own. What they share is the file system, as a cluster's nodes do.

All of it lives inside one outer set of namespaces, which `run` enters first: no interface of this machine is touched, and
what is left over ends with the outer one's first process.
"""
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
E2E = os.path.join(os.path.dirname(HERE), "e2e")
sys.path.insert(0, E2E)

from harness import Daemon, Failure, World, need  # noqa: E402

NETWORK = "10.77.0"
OUTER = ("unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child")


def outer_command():
    """What puts a command into the outer namespaces; who is not root becomes root of a user namespace first."""
    return [*OUTER[:1], *(["--user", "--map-root-user"] if os.geteuid() != 0 else []), *OUTER[1:]]


def why_not():
    """Why there can be no such hosts here, or None."""
    probe = "ip link add one type veth peer name other && ip link add both type bridge && mount -t tmpfs none /dev/shm"
    for program in ("ip", "unshare", "nsenter", "mpirun"):
        if not any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.environ["PATH"].split(":")):
            return f"{program} is not installed"
    tried = subprocess.run([*outer_command(), *outer_command(), "sh", "-c", probe], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                           check=False)
    if tried.returncode != 0:
        return f"namespaces are not permitted here: {tried.stderr.strip().splitlines()[-1] if tried.stderr.strip() else tried.returncode}"
    return None


def command(*words):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    need(done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Host:
    """One stand-in, node<i>."""

    def __init__(self, i, folder, hosts_file):
        self.name, self.address, self.cable = f"node{i}", f"{NETWORK}.{i + 1}", f"cable{i}"
        serve = [os.path.join(HERE, "first.py"), "serve", self.name, hosts_file, os.path.join(folder, self.name + ".sock")]
        self.keeper = subprocess.Popen([*OUTER, "python3", *serve], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        need(self.keeper.stdout.readline() == "up\n", f"{self.name} did not start")
        with open(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children", encoding="utf-8") as children:
            self.pid = int(children.read())
        command("ip", "link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        command("ip", "link", "set", self.cable, "master", "switch", "up")
        for words in (["ip", "link", "set", "lo", "up"], ["ip", "address", "add", f"{self.address}/24", "dev", "eth0"],
                      ["ip", "link", "set", "eth0", "up"]):
            command(*self.enter(), *words)

    def enter(self):
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", "--uts", "--pid", "--"]

    def plug(self, state):
        """Its cable: "up" or "down"."""
        command("ip", "link", "set", self.cable, state)

    def unplug_for_good(self):  # a namespace's interfaces outlive its last process a little
        subprocess.run(["ip", "link", "del", self.cable], stdin=subprocess.DEVNULL, capture_output=True, check=False)

    def processes(self, *names):
        """Of this host, by name: (pid as seen from outside, name)."""
        ours = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
                    text = stat.read()
                name, state = text[text.index("(") + 1:text.rindex(")")], text.rpartition(")")[2].split()[0]
                if os.readlink(f"/proc/{pid}/ns/pid") == ours and name in names and state != "Z":
                    found.append((int(pid), name))
            except OSError:
                continue
        return found

    def end(self):
        self.unplug_for_good()
        self.keeper.kill()  # --kill-child: its first process goes with it, and with that all others
        self.keeper.wait()
        self.keeper.stdout.close()


class Hosts(World):
    """A World whose daemons run on several hosts, mpirun on the first."""

    def __init__(self, build, folder):
        super().__init__(build, folder)
        self.hosts = []

    def connect(self, count):
        """node0 … and the switch between them."""
        command("ip", "link", "set", "lo", "up")
        command("ip", "link", "add", "switch", "type", "bridge")
        command("ip", "link", "set", "switch", "up")
        names = "".join(f"{NETWORK}.{i + 1} node{i}\n" for i in range(count))
        hosts_file = self.write("hosts", "127.0.0.1 localhost\n" + names)
        for i in range(count):
            self.hosts.append(Host(i, self.folder, hosts_file))
        self.agent = self.write("agent", f'#!/bin/sh\n# agent HOST COMMAND…: in place of ssh\nhost=$1\nshift\n'
                                f'exec python3 {HERE}/first.py run {self.folder}/"$host".sock "$@"\n')
        os.chmod(self.agent, 0o755)

    def mpi_options(self, hosts, ranks):
        names = ",".join(f"{host.name}:{max(1, ranks // len(hosts))}" for host in hosts)
        return ["--host", names, "--mca", "plm_rsh_agent", self.agent, "--mca", "btl", "self,vader,tcp", "--mca", "btl_tcp_if_include",
                "eth0", "--mca", "oob_tcp_if_include", "eth0", "--mca", "orte_tmpdir_base", self.folder]

    def start_on(self, hosts, ranks, *options, wait=True, **named):
        """mpirun over these hosts, one rank each unless said otherwise."""
        daemon = OnHosts(self, hosts, ranks, list(options), **named)
        self.daemons.append(daemon)
        if wait:
            daemon.wait_ready()
        return daemon

    def run_on(self, host, *words):
        """What it printed."""
        return command(*host.enter(), *words)

    def rank(self, wanted):
        """Its process id, as seen from here."""
        for host in self.hosts:
            for pid, _ in host.processes("trainerd"):
                with open(f"/proc/{pid}/environ", "rb") as environ:
                    if b"OMPI_COMM_WORLD_RANK=%d" % wanted in environ.read().split(b"\0"):
                        return pid
        raise Failure(f"there is no rank {wanted}")

    def close(self):
        super().close()
        for host in self.hosts:
            host.end()
        subprocess.run(["ip", "link", "del", "switch"], stdin=subprocess.DEVNULL, capture_output=True, check=False)


class OnHosts(Daemon):
    def __init__(self, world, hosts, ranks, options, state="state", env=None):
        super().__init__(world, ranks, options, state, env, before=hosts[0].enter(), mpi=world.mpi_options(hosts, ranks))
