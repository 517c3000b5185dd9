"""What a model folder for the edge holds: ``edge.json`` beside the graph, the tokenizer and the configuration."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from conf.errors import UserError

EDGE = "edge.json"
VERSION = 1
"""Of the graph's inputs and outputs; see `pipelines.optimize.export.graph.build_graph`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeModel:
    """Shapes of a graph."""

    file: str
    """The graph, in the same folder."""
    scheme: str
    """How its weights lie, such as ``int8``."""
    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    """Logits of a token."""
    context: int
    """Tokens that a sequence may have."""
    end_ids: list[int]
    """Tokens that end an answer."""
    version: int = VERSION

    @property
    def token_bytes(self) -> int:
        """Bytes that a token takes in the KV cache."""
        return 2 * 4 * self.layers * self.kv_heads * self.head_dim

    def write(self, folder: Path) -> None:
        """Writes the file."""
        (folder / EDGE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def is_edge_folder(path: str) -> bool:
    """Whether a model folder is for the edge."""
    return (Path(path).expanduser() / EDGE).is_file()


def read_edge_model(path: str) -> EdgeModel:
    """Reads a folder's shapes.

    Args:
        path: of the folder.

    Raises:
        UserError: when the folder is none for this engine.
    """
    folder = Path(path).expanduser()
    try:
        saved = json.loads((folder / EDGE).read_text(encoding="utf-8"))
        model = EdgeModel(**{field.name: saved[field.name] for field in fields(EdgeModel)})
    except FileNotFoundError:
        raise UserError(
            f"model.path={path}: no {EDGE} in it: engine=edge runs what manta optimize recipe=onnx_int8 (or onnx) makes"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"model.path={path}: {EDGE} cannot be read: {type(error).__name__}: {error}") from error
    if model.version != VERSION:
        raise UserError(
            f"model.path={path}: {EDGE} has version {model.version}, this Manta reads {VERSION}: export again"
        )
    if not (folder / model.file).is_file():
        raise UserError(f"model.path={path}: no {model.file} in it")
    return model
