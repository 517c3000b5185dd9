"""Metrics of others that panels need, under their own names."""

from __future__ import annotations

from dataclasses import dataclass

NEEDS_ENGINE = "vLLM's own: a replica without vLLM has none"
NEEDS_AGENT = "Ray tells of nodes once its agent has come up, which takes up to tens of seconds"
NEEDS_GPU = f"{NEEDS_AGENT}; and of GPUs only where there are any"


@dataclass(frozen=True, kw_only=True, slots=True)
class Foreign:
    """A family of series that Manta does not make."""

    series: str
    """The name that a query has."""
    source: str
    """Whose it is: a module that has the name in it, without what its exporter adds."""
    name: str
    """As it stands there."""
    needs: str
    """What it takes for it to be there."""


def _vllm(name: str, ending: str = "") -> Foreign:
    return Foreign(
        series=f"vllm:{name}{ending}", source="vllm/v1/metrics/loggers.py", name=f"vllm:{name}", needs=NEEDS_ENGINE
    )


def _node(name: str, needs: str) -> Foreign:
    return Foreign(
        series=f"ray_node_{name}",
        source="ray/dashboard/modules/reporter/reporter_agent.py",
        name=f"node_{name}",
        needs=needs,
    )


RUNNING = _vllm("num_requests_running")
WAITING = _vllm("num_requests_waiting")
KV_USED = _vllm("kv_cache_usage_perc")
PREFIX_HITS = _vllm("prefix_cache_hits", "_total")
PREFIX_QUERIES = _vllm("prefix_cache_queries", "_total")
PREEMPTIONS = _vllm("num_preemptions", "_total")
NODE_CPU = _node("cpu_utilization", NEEDS_AGENT)
NODE_GPU = _node("gpus_utilization", NEEDS_GPU)
NODE_GRAM = _node("gram_used", NEEDS_GPU)

FOREIGN = (RUNNING, WAITING, KV_USED, PREFIX_HITS, PREFIX_QUERIES, PREEMPTIONS, NODE_CPU, NODE_GPU, NODE_GRAM)
"""All of them."""
