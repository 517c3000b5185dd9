"""A request in vLLM's own terms: its parameters and its adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from serve.engine.adapters import check_adapter_name
from serve.engine.protocol import Request
from serve.engine.vllm.grammar import grammar

MAX_MADE = 1024
"""Parameters that are kept: rows of several units come by turns."""


class Questions:
    """Makes what vLLM takes. Parameters are made once for rows that share a node."""

    def __init__(self, task: Task, adapters: Mapping[str, str]) -> None:
        """Args are the engine's task, and a folder for each adapter's name."""
        self.task = task
        self.is_joint = True
        """For task score: the model reads both texts at once. Known after `bind`."""
        self._folders = dict(adapters)
        self._adapters: dict[str, Any] = {}
        self._has_token_types = False
        self._made: dict[int, tuple[SamplingSpec | None, Any]] = {}
        self._made_forced: dict[int, Any] = {}

    def bind(self, model_config: Any, tokenizer: Any, supported_tasks: Sequence[str]) -> None:
        """Learns what the loaded model can do.

        Args:
            model_config: vLLM's ModelConfig.
            tokenizer: the model's.
            supported_tasks: what the engine says that it does.

        Raises:
            ValueError: when the model cannot do the task.
        """
        config = model_config.hf_config
        wanted = self.task.value
        if self.task is Task.score:
            self.is_joint = "classify" in supported_tasks and getattr(config, "num_labels", 0) == 1
            wanted = "classify" if self.is_joint else "embed"
            # a tokenizer may give token types that its model has no weights for
            types = getattr(config, "type_vocab_size", 0) or 0
            self._has_token_types = types > 1 and "token_type_ids" in getattr(tokenizer, "model_input_names", ())
        if wanted not in supported_tasks:
            raise ValueError(f"the model cannot do task={self.task.value}, it does {', '.join(supported_tasks)}")
        self._pooling_task = wanted
        if self._folders:
            from vllm.lora.request import LoRARequest

            # vLLM tells adapters apart by their numbers
            folders = [(name, str(Path(self._folders[name]).expanduser())) for name in sorted(self._folders)]
            self._adapters = {name: LoRARequest(name, i, path) for i, (name, path) in enumerate(folders, 1)}

    def parameters(self, request: Request) -> Any:
        """Returns vLLM's SamplingParams or PoolingParams. They are shared: vLLM copies what it changes.

        Raises:
            RequestRejected: for a grammar that is none.
            Exception: what vLLM raises against the values; see `outcomes.request_errors`.
        """
        if request.forced_from is not None:
            return self._forced(request.forced_top)
        if self.task is Task.generate:
            spec = request.sampling
            if id(spec) not in self._made:
                if len(self._made) >= MAX_MADE:
                    self._made.clear()
                self._made[id(spec)] = spec, sampling_parameters(spec)  # with the node, whose id must stay its own
            return self._made[id(spec)][1]
        from vllm import PoolingParams

        if self._has_token_types and request.split is not None:
            # the index of the first token of type 1; source: vllm's compress_token_type_ids
            extra = {"compressed_token_type_ids": request.split}
            return PoolingParams(task=self._pooling_task, extra_kwargs=extra)  # type: ignore[arg-type]
        if not self._made:
            self._made[0] = None, PoolingParams(task=self._pooling_task)  # type: ignore[arg-type]
        return self._made[0][1]

    def _forced(self, top: int) -> Any:
        if top not in self._made_forced:
            from vllm import SamplingParams
            from vllm.sampling_params import RequestOutputKind

            # one token is the least that vLLM draws. Nobody reads the tokens' texts, and to find them takes longer than
            # to find the likely tokens; flat: 0.4 million small objects a thousand rows would keep the collector busy
            self._made_forced[top] = SamplingParams(
                max_tokens=1,
                temperature=0.0,
                prompt_logprobs=top,
                detokenize=False,
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        return self._made_forced[top]

    def adapter(self, request: Request) -> Any:
        """Returns vLLM's LoRARequest, or None for the model alone.

        Raises:
            RequestRejected: when there is no adapter of that name.
        """
        if request.adapter is None:
            return None
        check_adapter_name(request.adapter, self._folders)
        return self._adapters[request.adapter]

    def adapters(self) -> list[Any]:
        """Returns vLLM's LoRARequests for all adapters. Known after `bind`."""
        return list(self._adapters.values())


def sampling_parameters(spec: SamplingSpec) -> Any:
    """Returns vLLM's SamplingParams.

    Raises:
        RequestRejected: for a grammar that is none.
        Exception: what vLLM raises against the values; see `outcomes.request_errors`.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    # FINAL_ONLY: nobody streams here, and each intermediate output costs (21-29 % of throughput on a GPU)
    return SamplingParams(
        n=spec.n,
        max_tokens=spec.max_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        top_k=spec.top_k,
        min_p=spec.min_p,
        repetition_penalty=spec.repetition_penalty,
        presence_penalty=spec.presence_penalty,
        frequency_penalty=spec.frequency_penalty,
        seed=spec.seed,
        stop=list(spec.stop),
        ignore_eos=spec.ignore_eos,
        logprobs=spec.logprobs,
        structured_outputs=grammar(spec),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
