"""Tab completion for bash and zsh, answered by `manta --complete`."""

from __future__ import annotations

import sys

from conf.errors import UserError

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


def run(words: list[str]) -> int:
    """Prints the completion script of a shell.

    Raises:
        UserError: for a shell that it does not know.
    """
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

    typed = line.split()
    if len(typed) < 2 or (len(typed) == 2 and not line.endswith(" ")):
        start = typed[1] if len(typed) == 2 else ""
        return [verb + " " for verb in VERBS if verb.startswith(start)]
    if typed[1] not in entry.SCHEMAS:
        return []
    rest = line.split(None, 2)[2] if len(typed) > 2 else ""
    if rest.startswith("-") or rest.rsplit(" ", 1)[-1].startswith("-"):
        return [flag for flag in ("--help", "--cfg", "--resolve") if flag.startswith(rest.rsplit(" ", 1)[-1])]
    return [word for word in entry.complete(typed[1], rest) if not word.startswith("hydra")]
