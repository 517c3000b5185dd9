"""`manta VERB`: finds the verb, composes its job, turns the outcome into an exit code.

Exit codes: 0 done (manta serve: drained after Ctrl-C), 1 our fault, 2 the user's mistake (one line, no traceback),
3 done but some rows failed, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from conf.errors import UserError, nearest

VERBS: dict[str, tuple[str, str]] = {
    "batch": ("pipelines.batch.job:run", "run a model over a table: prompts in, answers out"),
    "serve": ("serve.app:run", "answer requests over HTTP in OpenAI's form; serve status, serve stop"),
    "plan": ("pipelines.forecast.verb:run", "say how a job would run, how long and for how much; takes no GPU"),
    "simulate": ("pipelines.simulate.verb:run", "replay a trace of arrivals against an autoscaler; takes no GPU"),
    "optimize": ("pipelines.optimize.verb:run", "make a model cheaper: quantize, prune, distill, export"),
    "evaluate": (
        "pipelines.evaluate.verb:run",
        "measure a model on labelled rows: quality, size, speed; write its card",
    ),
    "compare": ("pipelines.evaluate.compare:run", "put the cards of models side by side"),
    "inspect": ("pipelines.batch.inspection:run", "show what a job has come to: counts, error classes, failed rows"),
    "redrive": ("pipelines.batch.redrive:run", "ask the failed rows of a job again and merge their answers"),
    "cluster": ("cluster.verb:run", "Ray clusters of several nodes: up, status, down here; render for real ones"),
    "keys": ("serve.key_verb:run", "make, list and revoke the API keys of manta serve"),
    "submit": (
        "cluster.submit.verb:run",
        "run a verb on a Ray cluster, once, and follow it",
    ),
    "jobs": ("cluster.jobs:run", "list, show, follow and stop what was submitted to a cluster"),
    "doctor": ("cluster.doctor:run", "check this machine: versions, devices, memory, and what mends them"),
    "completion": ("conf.completion:run", 'print the shell\'s completion script: eval "$(manta completion bash)"'),
}
"""Each verb's function, imported only when it is called, and what it does."""
ACTIONS: dict[tuple[str, str], str] = {
    ("serve", "status"): "serve.service_verb:status",
    ("serve", "stop"): "serve.service_verb:stop",
    ("cluster", "up"): "cluster.verb:up",
    ("cluster", "status"): "cluster.verb:status",
    ("cluster", "down"): "cluster.verb:down",
    ("serve", "--job"): "serve.app:run_saved",
    ("cluster", "render"): "cluster.render:run",
    ("cluster", "dashboards"): "cluster.monitoring.verb:run",
}
"""First words of a verb that do something else; their functions take the words that follow."""
_WORDS = ("submit",)
"""Verbs with keys of their own that take further words too."""
_JSON_KEYS = {"plan": "plan", "simulate": "simulate", "evaluate": "output"}
"""Where verbs that know --json have their json_file."""


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] == "--complete":  # the shell asks; see conf/completion.py
        return _load("conf.completion:answer")(words[1:])
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"manta {_version()}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        print(f"manta: no verb '{verb}'{nearest(verb, VERBS)} (there are {', '.join(VERBS)})", file=sys.stderr)
        return 2
    return guarded(verb, lambda: _run(verb, rest))


def guarded(verb: str, run: Callable[[], int]) -> int:
    """Returns the exit code of a verb, and says what ended it."""
    try:
        return run()
    except UserError as error:
        print(f"manta {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"manta {verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except Exception:
        traceback.print_exc()
        print(f"manta {verb}: this is a fault of Manta's or of a library below it, not of your input", file=sys.stderr)
        return 1


def actions_of(verb: str) -> tuple[str, ...]:
    """Returns the first words of a verb that do something else, without those that only Manta says."""
    return tuple(action for of, action in ACTIONS if of == verb and action.isalpha())


def function_of(verb: str) -> Callable[..., int]:
    """Returns what runs a verb's job."""
    return _load(VERBS[verb][0])


def _run(verb: str, words: list[str]) -> int:
    from conf import entry
    from conf.help import help_text

    if words and (verb, words[0]) in ACTIONS:
        return _load(ACTIONS[verb, words[0]])(words[1:])
    actions = actions_of(verb)
    if words and actions and words[0].isalpha():
        raise UserError(f"no '{words[0]}'{nearest(words[0], actions)} (there are {', '.join(actions)})")
    if verb not in entry.SCHEMAS or verb in _WORDS:
        return _load(VERBS[verb][0])(words)
    if "-h" in words or "--help" in words:
        print(help_text(verb, VERBS[verb][1]))
        return 0
    if verb in _JSON_KEYS:
        words = [f"{_JSON_KEYS[verb]}.json_file=-" if word == "--json" else word for word in words]
    flags, overrides = _split_flags(words)
    if flags:
        if "--cfg" not in flags:
            raise UserError(f"{next(iter(flags))} goes with --cfg job")
        print(entry.show(verb, flags.get("--package"), "--resolve" in flags, overrides), end="")
        return 0
    job = entry.compose(verb, *words)
    return _load(VERBS["plan" if verb == "batch" and job.dry_run else verb][0])(job)


def _split_flags(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Parts the flags, with their values, from the overrides."""
    long = {"-c": "--cfg", "-p": "--package"}
    flags: dict[str, str] = {}
    overrides: list[str] = []
    rest = iter(words)
    for word in rest:
        flag = long.get(word, word)
        if flag == "--resolve":
            flags[flag] = ""
        elif flag in ("--cfg", "--package"):
            flags[flag] = next(rest, "")
            if not flags[flag] or (flag == "--cfg" and flags[flag] != "job"):
                wanted = "job" if flag == "--cfg" else "a part, such as sampling"
                raise UserError(f"{word} takes {wanted}, got '{flags[flag]}'")
        elif word.startswith("-"):
            known = ["--cfg", "--package", "--resolve", "--help"]
            raise UserError(f"unknown option '{word}'{nearest(word, known)} (there are {', '.join(known)})")
        else:
            overrides.append(word)
    return flags, overrides


def _load(target: str) -> Callable[..., int]:
    module, function = target.split(":")
    return getattr(import_module(module), function)


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<12}{what}" for verb, (_, what) in VERBS.items())
    return f"""manta {_version()}: language models over tables and behind endpoints, on one Ray cluster

usage: manta VERB [group=option ...] [key=value ...]

verbs:
{verbs}

manta VERB --help lists a verb's keys; manta VERB --cfg job prints what would run.

exit codes: 0 done, 2 your mistake, 3 some rows failed, 130 interrupted, 1 our fault"""


def _version() -> str:
    try:
        return version("manta")
    except PackageNotFoundError:
        return "(not installed)"


def entrypoint() -> None:
    """What the `manta` script calls. Does not return."""
    code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = 141
    # all is written by now. Libraries' threads may end a process that takes them down one by one with a code of their
    # own: an inspect ended so with SIGABRT, "terminate called without an active exception" (pyarrow 26)
    os._exit(code)


if __name__ == "__main__":
    entrypoint()
