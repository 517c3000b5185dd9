"""Where a finished model can be found: model=NAME."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from conf.entry import options, own_folder
from conf.errors import UserError


def register(name: str, folder: Path) -> Path:
    """Writes model/NAME.yaml to the user's own configuration.

    Returns:
        The file.

    Raises:
        UserError: when a shipped model has the name, or the file cannot be written.
    """
    check_name(name)
    path = own_folder() / "model" / f"{name}.yaml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# Made by manta optimize.\n{OmegaConf.to_yaml({'name': name, 'path': str(folder)})}")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; set MANTA_CONF, or output.register=false"
        ) from error
    return path


def check_name(name: str) -> None:
    """Checks that a name can stand for a model.

    Raises:
        UserError: when a shipped one has it.
    """
    own = {path.stem for path in (own_folder() / "model").glob("*.yaml")}
    if name in set(options("model")) - own:
        raise UserError(f"name={name} is that of a shipped model; choose another")
