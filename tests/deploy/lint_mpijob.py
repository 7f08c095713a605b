#!/usr/bin/python3
"""lint_mpijob.py FILE [PATH VALUE]: checks an MPIJob against mpijob.schema.json and itself; Debian's python3 has what it imports.

With PATH (a.b.0.c) and VALUE (YAML), first puts that in: how the test sees that mistakes are found. Prints what is wrong, a line
each, else "preStop: …" with the shell lines, for shellcheck; exit 1 where something is wrong.
"""
import json
import os
import sys

import jsonschema
import yaml

SHELL = ["/bin/sh", "-c"]


def put(at, path, value):
    keys = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value


def of_the_job(job):
    """What a schema cannot say."""
    replicas = job["spec"]["mpiReplicaSpecs"]
    pods = {role: replicas[role]["template"]["spec"] for role in ("Launcher", "Worker")}
    name = job["metadata"]["name"]
    if replicas["Launcher"].get("replicas", 1) != 1:
        yield "there is one launcher"
    if len({container["image"] for pod in pods.values() for container in pod["containers"]}) != 1:
        yield "launcher and workers run different images"
    for role, pod in pods.items():
        there = {volume["name"] for volume in pod.get("volumes", [])}
        if pod.get("terminationGracePeriodSeconds", 30) < 300:
            yield f"{role}: saving may take longer than terminationGracePeriodSeconds"
        for container in pod["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
            yield from (f"{role}: there is no volume {mount}" for mount in mounts if mount not in there)
            if "/shared" not in mounts.values():
                yield f"{role}: the shared volume is not mounted"
            if role == "Worker" and "/dev/shm" not in mounts.values():
                yield "Worker: /dev/shm is the container's own, of 64 MiB"
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
            if hook[:2] != SHELL or len(hook) != 3:
                yield f"{role}: no preStop that saves"
            elif role == "Worker" and f" {name}-worker-0.{name} " not in hook[2]:
                yield f"Worker: preStop does not ask {name}-worker-0.{name}, where rank 0 is"


def main():
    with open(sys.argv[1], encoding="utf-8") as text:
        jobs = [job for job in yaml.safe_load_all(text) if job is not None]
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "mpijob.schema.json"), encoding="utf-8") as text:
        schema = json.load(text)
    wrong = [] if len(jobs) == 1 else [f"one MPIJob is expected, not {len(jobs)}"]
    for job in jobs:
        if len(sys.argv) > 3:
            put(job, sys.argv[2], yaml.safe_load(sys.argv[3]))
        found = [f"{'.'.join(map(str, e.path))}: {e.message[:200]}" for e in jsonschema.Draft7Validator(schema).iter_errors(job)]
        wrong += found or of_the_job(job)
        if not found:
            for role in job["spec"]["mpiReplicaSpecs"].values():
                for container in role["template"]["spec"]["containers"]:
                    print("preStop: " + container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [""])[-1])
    for line in wrong:
        print(line)
    sys.exit(bool(wrong))


main()
