#!/usr/bin/env python3
"""The first process of a stand-in for a host, and its sshd.

    first.py serve NAME HOSTS-FILE SOCKET     the host's first process: names it, gives it a /dev/shm and an /etc/hosts of its own, runs
                                              what it is asked to over SOCKET, and buries its orphans
    first.py run SOCKET WORD…                 runs "WORD …" there by a shell, in place of ssh: the same streams, its exit status

SOCKET lies in the file system that the hosts share, so it works where the network is cut; Open MPI needs it only to start its daemons.
"""
import json
import os
import select
import signal
import socket
import subprocess
import sys

REQUEST_BYTES = 1 << 20


def serve(name, hosts_file, path):
    socket.sethostname(name)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    subprocess.run(["mount", "--bind", hosts_file, "/etc/hosts"], check=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    wake, wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_in)
    waiting = {}  # process id: the connection that asked for it
    print("up", flush=True)
    while True:
        ready = select.select([listener, wake], [], [])[0]
        if wake in ready:
            os.read(wake, 4096)
        if listener in ready:
            asker, _ = listener.accept()
            request, streams, _, _ = socket.recv_fds(asker, REQUEST_BYTES, 3)
            asked = json.loads(request)
            child = subprocess.Popen(["sh", "-c", asked["line"]], cwd=asked["folder"], stdin=streams[0], stdout=streams[1],
                                     stderr=streams[2], start_new_session=True)
            waiting[child.pid] = asker
            for stream in streams:
                os.close(stream)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in waiting:
                answer(waiting.pop(pid), status)


def answer(asker, status):
    code = os.waitstatus_to_exitcode(status)
    try:
        asker.send(bytes([code if code >= 0 else 128 - code]))
    except OSError:
        pass  # it did not wait
    asker.close()


def run(path, line):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    request = json.dumps({"line": line, "folder": os.getcwd()}).encode()
    socket.send_fds(connection, [request], [0, 1, 2])
    status = connection.recv(1)
    return status[0] if status else 255


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:5])
    else:
        sys.exit(run(sys.argv[2], " ".join(sys.argv[3:])))
