"""`manta cluster render`: writes what starts a real cluster, from one configuration."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from cluster.kuberay import ray_cluster, ray_job, ray_service
from cluster.launcher import launcher_config
from cluster.tpu_slice import slice_of
from conf import entry
from conf.errors import UserError, nearest
from conf.help import help_text
from conf.schema.fleet import FleetSpec, RenderJob
from conf.schema.provider import Provider

WHAT = "write the files that start a real cluster: for ray up, or for KubeRay"
_OPTIONS = ("--out", "--help")


def run(words: list[str]) -> int:
    """Writes the files of a cluster and says where they are.

    Args:
        words: overrides, with ``cluster`` for ``fleet`` where one likes, and ``--out FOLDER``.

    Returns:
        The exit code.

    Raises:
        UserError: for a word that is wrong, a cluster that cannot be, a folder that cannot be written.
    """
    if "-h" in words or "--help" in words:
        print(help_text("render", WHAT, command="cluster render"))
        return 0
    out, overrides = split_words(words)
    job: RenderJob = entry.compose("render", *overrides)
    job.fleet.check()
    folder = Path(out or f"out/render/{job.fleet.name}-{job.fleet.provider.value}")
    files = render(job.fleet, overrides)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror or error}") from None
    for name in files:
        print(folder / name)
    print(f"manta cluster render: {_next(job.fleet, folder)}", file=sys.stderr)
    return 0


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """Parts the folder from the overrides, which say ``fleet`` after it.

    Raises:
        UserError: for an option that is none.
    """
    out, overrides, rest = None, [], iter(words)
    for word in rest:
        if word == "--out" or word.startswith("--out="):
            out = word.partition("=")[2] or next(rest, "")
            if not out:
                raise UserError("--out takes a folder")
        elif word.startswith("-"):
            raise UserError(f"unknown option '{word}'{nearest(word, _OPTIONS)} (there are {', '.join(_OPTIONS)})")
        else:
            is_alias = word.startswith(("cluster=", "cluster."))
            overrides.append("fleet" + word.removeprefix("cluster") if is_alias else word)
    return out, overrides


def render(fleet: FleetSpec, words: list[str]) -> dict[str, str]:
    """Returns the text of each file, by its name.

    Args:
        fleet: the cluster.
        words: what was typed, for the files' first line.

    Raises:
        UserError: when fleet.batch or fleet.serve are no words of their verbs.
    """
    if fleet.provider is not Provider.kuberay:
        return {"cluster.yaml": _text(launcher_config(fleet), fleet, words)}
    found = [ray_cluster(fleet), ray_job(fleet), ray_service(fleet)]
    return {f"{manifest['kind'].lower()}.yaml": _text(manifest, fleet, words) for manifest in found}


def _text(values: dict[str, Any], fleet: FleetSpec, words: list[str]) -> str:
    typed = shlex.join(re.sub(r"^fleet(?=[.=])", "cluster", word) for word in words)
    lines = [f"# Made by: manta cluster render {typed}".rstrip(), "# Change conf/fleet or these words, not this file."]
    for name, node in fleet.slices.items():
        tpus = slice_of(node)
        lines.append(
            f"# {name}: {tpus.num_hosts} hosts of {tpus.chips_per_host} chips; Ray counts TPU: {tpus.chips_per_host} on"
            f" each, {tpus.head_resource}: 1 on the first. Not run on hardware."
        )
    return "\n".join(lines) + "\n" + yaml.dump(values, Dumper=_Plain, sort_keys=False, width=10_000)


class _Plain(yaml.SafeDumper):
    """Writes a value that stands twice twice, and text of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _write_text)


def _next(fleet: FleetSpec, folder: Path) -> str:
    if fleet.provider is Provider.kuberay:
        return f"next: kubectl apply -f {folder}/raycluster.yaml (docs/real_clusters.md says what must be there first)"
    return f"next: ray get-auth-token --generate; ray up {folder}/cluster.yaml (docs/real_clusters.md)"
