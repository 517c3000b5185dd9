"""Tab completion for bash and zsh, answered by `manta --complete`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from glob import escape, glob
from pathlib import Path

from conf.cli import actions_of
from conf.errors import UserError
from conf.keys import keys_of

SCRIPT = """\
_manta_complete() {
  local IFS=$'\\n'
  COMPREPLY=( $(manta --complete "${COMP_LINE:0:$COMP_POINT}" 2>/dev/null) )
  # readline breaks words at '=': give back only what follows the last one
  if [[ "$COMP_WORDBREAKS" == *=* && "${COMP_LINE:0:$COMP_POINT}" == *=* ]]; then
    local cur="${COMP_LINE:0:$COMP_POINT}"; cur="${cur##* }"
    if [[ "$cur" == *=* ]]; then COMPREPLY=( "${COMPREPLY[@]#"${cur%%=*}="}" ); fi
  fi
}
complete -o nospace -o default -F _manta_complete manta
"""

WORDS: dict[str, tuple[str, ...]] = {
    "keys": ("add", "list", "revoke"),
    "serve": actions_of("serve"),
    "cluster": actions_of("cluster"),
    "submit": ("batch", "serve", "optimize", "evaluate"),
    "jobs": ("list", "show", "logs", "stop"),
}
"""First words of verbs that are no keys."""


def run(words: list[str]) -> int:
    """Prints the completion script of a shell.

    Raises:
        UserError: for a shell that it does not know.
    """
    if words in (["-h"], ["--help"]):
        print('manta completion [bash|zsh]: prints the script that completes manta: eval "$(manta completion bash)"')
        return 0
    shell = words[0] if words else "bash"
    if shell not in ("bash", "zsh"):
        raise UserError(f"no completion for '{shell}' (there are bash, zsh)")
    print(("autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "") + SCRIPT, end="")
    return 0


def answer(words: list[str]) -> int:
    """Prints the words that can end the given command line, one on each line."""
    line = words[0] if words else ""
    for word in candidates(line):
        sys.stdout.write(word + "\n")
    return 0


def candidates(line: str) -> list[str]:
    """Returns the words that can end ``line``, a command line cut at the cursor."""
    from conf import entry
    from conf.cli import VERBS

    verb, _, rest = line.lstrip().partition(" ")[2].lstrip().partition(" ")
    if not rest and not line.endswith(" "):
        return [name + " " for name in VERBS if name.startswith(verb)]
    if not verb:
        return [name + " " for name in VERBS]
    if verb not in entry.SCHEMAS:
        return [word + " " for word in WORDS.get(verb, ()) if word.startswith(rest)]
    word, before = rest.rpartition(" ")[2], rest.split()[:-1] if not rest.endswith(" ") else rest.split()
    if before and before[-1] in ("--cfg", "-c"):
        return [value for value in ("job",) if value.startswith(word)]
    if verb == "submit" and before:
        return _submitted(before[0], word)
    if word.startswith("-"):
        return [flag for flag in ("--help", "--cfg", "--package", "--resolve") if flag.startswith(word)]
    actions = {name + " " for name in WORDS.get(verb, ()) if not before and name.startswith(word)}
    return sorted(actions | set(_words(verb, word)))


def _submitted(verb: str, word: str) -> list[str]:
    """Words after manta submit VERB: the verb's own, and those of submit."""
    from conf import entry

    if word.startswith("-"):
        return [flag for flag in ("--no-wait", "--again") if flag.startswith(word)]
    own = (each for each in _words("submit", word) if each.startswith("submit."))
    return sorted({*own, *(_words(verb, word) if verb in entry.SCHEMAS else ())})


def _words(verb: str, word: str) -> Iterator[str]:
    """Yields groups, keys up to their next dot, and values."""
    from conf import entry

    groups = entry.groups(verb)
    name, is_value, start = word.partition("=")
    keys = {key.name: key for key in keys_of(entry.SCHEMAS[verb])}
    if is_value:
        if name in keys and keys[name].is_text:
            yield from (f"{name}={path}" for path in _paths(start))
            return
        known = entry.options(name) if name in groups else keys[name].values if name in keys else []
        yield from (f"{name}={value}" for value in known if value.startswith(start))
        return
    yield from (f"{group}=" for group in groups if group.startswith(word))
    for key in keys:
        if key.startswith(word):
            part, dot, _ = key[len(word) :].partition(".")
            yield word + part + (dot or "=")


def _paths(start: str) -> list[str]:
    """Files and folders that begin so."""
    return [path + "/" if Path(path).is_dir() else path for path in glob(escape(start) + "*")]
