"""`manta cluster up|status|down`: a Ray cluster of several nodes on this machine, from its start to its end."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict

from cluster import dashboard, known
from cluster.dashboard import JobNow, NoAnswer, NodeNow
from cluster.ending import end, processes_of
from cluster.known import KnownCluster
from conf import entry
from conf.cli import actions_of
from conf.errors import UserError, nearest
from conf.help import help_text
from conf.schema.cluster import ClusterJob, ClusterSpec

NAME = "local"
"""What a cluster is called that is given no name."""


def run(job: ClusterJob) -> int:
    """Says what manta cluster takes.

    Raises:
        UserError: always.
    """
    raise UserError(f"say what to do: manta cluster {'|'.join(actions_of('cluster'))}")


def up(words: list[str]) -> int:
    """Runs `manta cluster up [key=value ...]`.

    Returns:
        The exit code: 0 all nodes are there, 1 one did not start, and nothing is left.

    Raises:
        UserError: for a mistake in the words, or when a cluster of this name runs.
    """
    if _asks_help(words):
        return 0
    spec = _spec(words, is_bare=False)
    name = spec.name or NAME
    if spec.address is not None or spec.jobs_url is not None:
        raise UserError("manta cluster up starts nodes on this machine: cluster=local or cluster=local_autoscaled")
    began = time.monotonic()
    with known.claimed():
        before = known.read(name)
        if before is not None and before.is_alive:
            raise UserError(f"cluster.name={name}: runs already, at {before.gcs_address}: manta cluster status {name}")
        if before is not None:
            _say(f"cleaning up after {name}, whose head has ended")
            end(before)
        from cluster.start import start

        count = f"{spec.nodes} to {spec.max_nodes}" if spec.max_nodes else str(spec.nodes)
        _say(f"starting {name}, {count} node{'' if count == '1' else 's'}")
        try:
            cluster = start(spec, name, _say, os.environ)
        except RuntimeError as error:
            _say(f"{error}; nothing is left of {name}")
            return 1
    other = "" if known.names() == [name] else f" cluster.name={name}"
    lines = [
        f"{name} is up after {time.monotonic() - began:.0f} s",
        f"  address  {cluster.gcs_address}",
        f"  jobs     {cluster.jobs_url}",
        f"  token    {cluster.folder / known.TOKEN}",
        f"  use      manta batch ... cluster=running{other}",
        f"  look     manta cluster status {name}",
        f"  end      manta cluster down {name}",
    ]
    _say("\n".join(lines))
    return 0


def status(words: list[str]) -> int:
    """Runs `manta cluster status [NAME] [--json]`.

    Returns:
        The exit code: 0 it answers (without a name: all that are known do, and there is one), 1 not.

    Raises:
        UserError: for a mistake in the words, or a name that no cluster has.
    """
    if _asks_help(words):
        return 0
    is_json = "--json" in words
    name = _spec([word for word in words if word != "--json"], is_bare=True).name
    there = known.names()
    if name is not None and name not in there:
        hint = f"{nearest(name, there)} (there are {', '.join(there)})" if there else f" ({known.UP})"
        raise UserError(f"cluster.name={name}: no such cluster on this machine{hint}")
    looks = [look(each) for each in (there if name is None else [name])]
    if is_json:
        print(json.dumps([found for _, found, _ in looks] if name is None else looks[0][1], indent=2))
    else:
        print("\n".join(text for text, _, _ in looks) or f"no cluster runs on this machine ({known.UP})")
    return 0 if looks and all(is_well for _, _, is_well in looks) else 1


def down(words: list[str]) -> int:
    """Runs `manta cluster down [NAME]`; what has ended already is no mistake.

    Returns:
        The exit code: 0 nothing of it is left, 1 a process does not end.

    Raises:
        UserError: for a mistake in the words, or no name where there are several.
    """
    if _asks_help(words):
        return 0
    name = _spec(words, is_bare=True).name
    there = known.names()
    if name is None and len(there) > 1:
        raise UserError(f"down takes the name of a cluster: there are {', '.join(there)}")
    name = name or next(iter(there), None)
    if name is None:
        _say("no cluster is left on this machine")
        return 0
    with known.claimed():
        cluster = known.read(name)
        if cluster is None:
            _say(f"{name}: nothing is left of it")
            return 0
        count = len(processes_of(cluster))
        _say(f"ending {name}, {count} process{'' if count == 1 else 'es'}")
        try:
            end(cluster)
        except RuntimeError as error:
            _say(str(error))
            return 1
    _say(f"{name} is down: no process and no file is left")
    return 0


def look(name: str) -> tuple[str, dict[str, object], bool]:
    """Returns how a cluster stands: as text, as JSON, and whether it answers."""
    try:
        cluster = known.read(name)
        if cluster is None:
            return f"{name}: gone", {"name": name, "state": "gone"}, False
    except UserError as error:
        return str(error), {"name": name, "state": "broken", "error": str(error)}, False
    nodes: list[NodeNow] = []
    jobs: list[JobNow] = []
    state, error = "ready" if cluster.is_ready else "starting", None
    if cluster.is_alive:
        try:
            nodes, jobs = dashboard.nodes(cluster.jobs), dashboard.jobs(cluster.jobs)
        except NoAnswer as missing:
            state, error = "does not answer", str(missing)
    else:
        state = "its head has ended"
    found: dict[str, object] = {
        "name": name,
        "state": state,
        "address": cluster.gcs_address,
        "jobs_url": cluster.jobs_url,
        "nodes": [asdict(node) for node in nodes],
        "jobs": [asdict(job) for job in jobs],
    }
    return _page(cluster, state, error, nodes, jobs), found, state == "ready"


def _page(cluster: KnownCluster, state: str, error: str | None, nodes: list[NodeNow], jobs: list[JobNow]) -> str:
    alive = [node for node in nodes if node.is_alive]
    lines = [f"{cluster.name}: {state}{f': {error}' if error else ''}"]
    if nodes:
        used, total = sum(node.used_cpus for node in alive), sum(node.num_cpus for node in alive)
        lines.append(f"  nodes    {len(alive)} alive, {used:g} of {total:g} CPUs used")
        for node in nodes:
            how = f"{node.used_cpus:g} of {node.num_cpus:g} CPUs used" if node.is_alive else "dead"
            lines.append(f"           {node.name:<12}{how}")
    lines += [f"  address  {cluster.gcs_address}", f"  jobs     {cluster.jobs_url}"]
    lines += [f"           {job.id}  {job.status.lower()}" for job in jobs]
    if not cluster.is_alive:
        lines.append(f"  clean up with manta cluster down {cluster.name}")
    return "\n".join(lines)


def _spec(words: list[str], is_bare: bool) -> ClusterSpec:
    """The cluster that is meant; a bare word is its name, where one may stand."""
    bare = [word for word in words if "=" not in word and not word.startswith("-")] if is_bare else []
    if len(bare) > 1:
        raise UserError(f"takes the name of one cluster, got '{' '.join(bare)}'")
    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise UserError(f"unknown option '{flags[0]}'{' (there is --json)' if is_bare else ''}")
    typed = [f"cluster.name={word}" if word in bare else word for word in words]
    job: ClusterJob = entry.compose("cluster", *typed)
    return job.cluster


def _asks_help(words: list[str]) -> bool:
    is_asked = "-h" in words or "--help" in words
    if is_asked:
        print(help_text("cluster", "a Ray cluster of several nodes on this machine"))
    return is_asked


def _say(news: str) -> None:
    print(f"manta cluster: {news}", file=sys.stderr, flush=True)
