"""The only importer of Hydra: from words on a command line to a typed job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.errors import UserError, nearest
from conf.keys import keys_of
from conf.override import fit_overrides, literal
from conf.schema.batch import BatchJob
from conf.schema.cluster import ClusterJob
from conf.schema.evaluate import EvaluateJob
from conf.schema.fleet import RenderJob
from conf.schema.optimize import OptimizeJob
from conf.schema.serve import ServeJob
from conf.schema.simulate import SimulateJob
from conf.schema.submit import SubmitJob

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds conf/ and demo/."""

SCHEMAS: dict[str, type] = {
    "batch": BatchJob,
    "plan": BatchJob,
    "serve": ServeJob,
    "simulate": SimulateJob,
    "optimize": OptimizeJob,
    "evaluate": EvaluateJob,
    "render": RenderJob,
    "submit": SubmitJob,
    "cluster": ClusterJob,
}
"""The primary configurations, each the root of a verb."""

_store = ConfigStore.instance()
for _name, _schema in SCHEMAS.items():
    _store.store(name=f"{_name}_schema", node=_schema)
# Hydra copies its sources each time, and with one of them this store, which never changes: a fifth of a composition
ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
OmegaConf.register_new_resolver("manta.root", lambda path: str(ROOT / path), replace=True)


def own_folder() -> Path:
    """Returns where a user's own choices lie, such as model/NAME.yaml: MANTA_CONF, else manta below XDG_CONFIG_HOME."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(os.environ.get("MANTA_CONF") or Path(home) / "manta").expanduser().absolute()


def groups(name: str | None = None) -> list[str]:
    """Returns the names of the configuration groups, such as ``model``: those that a verb chooses from, or all."""
    here = Path(__file__).parent
    found = sorted(folder.name for folder in here.iterdir() if any(folder.glob("*.yaml")))
    if name is None:
        return found
    defaults = OmegaConf.select(OmegaConf.load(here / f"{name}.yaml"), "defaults")
    chosen = {str(key) for item in defaults if OmegaConf.is_dict(item) for key in item}
    for item in defaults:
        if isinstance(item, str) and item in SCHEMAS:  # plan takes all that batch takes
            chosen |= set(groups(item))
    return [group for group in found if group in chosen]


def _parts() -> list[str]:
    """Groups within groups, such as ``step/prune``: parts that a recipe is made of."""
    here = Path(__file__).parent
    return sorted({str(path.parent.relative_to(here)) for path in here.glob("*/*/*.yaml")})


def options(group: str) -> list[str]:
    """Returns the options of a group, such as ``demo`` of ``model``: the shipped ones, and the user's own."""
    folders = Path(__file__).parent, own_folder()
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def compose_config(name: str, *overrides: str) -> DictConfig:
    """Composes the configuration of a verb, unresolved.

    Raises:
        UserError: for an override that is wrong; one line.
    """
    # a folder is no option of a group: model=./mine is what model.path=./mine says
    typed = [f"model.path={word[6:]}" if word.startswith("model=") and "/" in word else word for word in overrides]
    words = fit_overrides(SCHEMAS[name], [*groups(name), *_parts()], typed)
    for word in words:
        _check_word(word)
    if (own := own_folder()).is_dir():
        words.append(f"hydra.searchpath=[{literal(f'file://{own}')}]")
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module("conf", version_base="1.3"):
            return hydra.compose(name, overrides=words)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from error


def compose(name: str, *overrides: str) -> Any:
    """Composes the typed job of a verb: ``compose("batch", "model=demo", "data=tickets")``.

    Returns:
        An instance of ``SCHEMAS[name]``.

    Raises:
        UserError: for an override that is wrong, a value that breaks a rule, or one that is missing; one line.
    """
    config = compose_config(name, *overrides)
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if not missing:
            return OmegaConf.to_object(config)
    except UserError as error:
        raise UserError(_in_item(SCHEMAS[name], config, error)) from None
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(_in_item(SCHEMAS[name], config, error.__cause__)) from None
        raise UserError(_one_line(error)) from error
    key, group = missing[0], missing[0].split(".")[0]
    doc = next((k.doc for k in keys_of(SCHEMAS[name]) if f".{key}".endswith(f".{k.name}")), "").rstrip(".")
    shipped = f"; or take a shipped choice: {group}=NAME, of {', '.join(options(group))}" if group in groups() else ""
    raise UserError(f"{key} must be set: {doc}{shipped}")


def show(name: str, package: str | None, is_resolved: bool, overrides: list[str]) -> str:
    """Returns the composed configuration as YAML, or a part of it; runs nothing.

    Args:
        name: the verb.
        package: a dotted key, such as ``sampling``; null is all of it.
        is_resolved: whether interpolations are replaced by what they stand for.
        overrides: ``key=value`` words.

    Raises:
        UserError: for an override that is wrong, or a package that is not there.
    """
    config = compose_config(name, *overrides)
    try:
        part = OmegaConf.select(config, package) if package else config
        if not OmegaConf.is_config(part):
            raise UserError(f"no part '{package}'{nearest(package or '', [str(key) for key in config])}")
        return OmegaConf.to_yaml(part, resolve=is_resolved)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from error


def _check_word(word: str) -> None:
    """Checks one word alone, so that the message can name its key."""
    key, _, value = word.lstrip("+~").partition("=")
    group = key.split("@")[0]
    if group in groups() and not word.startswith("~") and value not in options(group):
        hint = f"{nearest(value, options(group))} (there are {', '.join(options(group))})"
        raise UserError(f"no option '{value}' of {group}{hint}")
    try:
        OverridesParser.create().parse_override(word)
    except Exception as error:  # the lexer raises what is no HydraException
        raise UserError(f"{key}: '{value}' cannot be read; quote it: \"{key}='...'\"") from error


def _in_item(schema: type, config: DictConfig, error: UserError) -> str:
    """The message of a mistake with the key's whole name: parts that stand in a dict do not know where they stand."""
    for key in keys_of(schema):
        for name, part in (OmegaConf.select(config, key.name) if key.item else {}).items():
            try:
                OmegaConf.to_object(part)
            except (UserError, OmegaConfBaseException) as found:
                if str(error) in (str(found), str(found.__cause__)):
                    return f"{key.name}.{name}.{error}"
    return str(error)


def _one_line(error: Exception) -> str:
    """The first telling line of Hydra's or OmegaConf's message, with the key that it is about."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    key = str(getattr(cause, "full_key", "") or "")
    if not key:
        key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    text = lines[0] if lines else type(error).__name__
    return f"{key}: {text}" if key and key not in text else text
