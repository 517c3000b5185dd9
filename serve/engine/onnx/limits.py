"""What the edge engine cannot do: said before any work where a job asks for it, and to the row where a row does."""

from __future__ import annotations

from conf.errors import UserError
from conf.schema.engine import EngineKind, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.task import Task
from serve.engine.errors import RequestRejected
from serve.engine.gguf.folder import is_gguf_folder
from serve.engine.limits import check_small_engine, check_small_request
from serve.engine.onnx.layout import EdgeModel, is_edge_folder, read_edge_model
from serve.engine.onnx.slots import Slots
from serve.engine.protocol import Request


def check_edge(model: ModelSpec, engine: EngineSpec, task: Task) -> EdgeModel:
    """Checks that the edge engine can do what is asked, and returns the model's shapes.

    Raises:
        UserError: when it cannot.
    """
    edge = read_edge_model(model.path)
    check_small_engine("edge", model, engine, task)
    if engine.max_model_len is not None and engine.max_model_len > edge.context:
        raise UserError(
            f"engine.max_model_len must be <= the {edge.context} tokens that the model was exported for,"
            f" got {engine.max_model_len}"
        )
    return edge


def check_not_edge(model: ModelSpec, engine: EngineSpec) -> None:
    """Checks that an exported model is not given to vLLM, which reads no ONNX and no GGUF.

    Raises:
        UserError: when it is.
    """
    if engine.kind is EngineKind.vllm and is_edge_folder(model.path):
        raise UserError(f"model.path={model.path} was exported for engine=edge; engine.kind is {engine.kind.value}")
    if engine.kind is EngineKind.vllm and is_gguf_folder(model.path):
        raise UserError(f"model.path={model.path} was exported for engine=gguf; engine.kind is {engine.kind.value}")


def check_request(request: Request, edge: EdgeModel, context: int, slots: Slots) -> None:
    """Checks one request.

    Args:
        request: what is asked.
        edge: the model's shapes.
        context: tokens of a sequence at most.
        slots: where it is to sit.

    Raises:
        RequestRejected: when it can never be answered.
    """
    tokens, sampling = request.token_ids, request.sampling
    check_small_request("edge", request, context)
    if not 0 <= min(tokens) <= max(tokens) < edge.vocabulary:
        raise RequestRejected("engine_rejected", f"a token id is not in 0..{edge.vocabulary - 1}")
    if request.forced_from is not None and request.forced_from < 1:
        raise RequestRejected("engine_rejected", "a given text needs a token before it")
    reserved = sampling.n * min(len(tokens) + sampling.max_tokens, context)
    if sampling.n > slots.count or reserved > slots.budget:
        raise RequestRejected("engine_rejected", f"n={sampling.n} answers at a time find no room in the KV cache")
