"""Token load in replicas: how many would be busy all the time with it."""

from __future__ import annotations

from conf.schema.autoscale import AutoscaleSpec
from serve.autoscale.observation import Capacity, Observation


def busy_replicas(prompt_tokens_per_s: float, answer_tokens_per_s: float, capacity: Capacity) -> float:
    """Returns the replicas that these rates keep busy. Prompts and answers share a replica's time, so shares add up."""
    return prompt_tokens_per_s / capacity.prefill_tokens_per_s + answer_tokens_per_s / capacity.decode_tokens_per_s


def arriving(seen: Observation) -> float:
    """Returns the arriving load in replicas: of the window in which it is larger, so that a rise counts soon.

    It counts at once where more has come in a moment than chance explains.
    """
    short = busy_replicas(seen.short_prompt_tokens_per_s, seen.short_answer_tokens_per_s, seen.capacity)
    long = busy_replicas(seen.long_prompt_tokens_per_s, seen.long_answer_tokens_per_s, seen.capacity)
    least = busy_replicas(seen.least_prompt_tokens_per_s, seen.least_answer_tokens_per_s, seen.capacity)
    return max(short, long, least)


def queue(spec: AutoscaleSpec, seen: Observation) -> float:
    """Returns the replicas that compute the prompts that wait within ``queue_drain_s``.

    What a fleet this busy has waiting at any time, a tenth of a second for each replica, is no queue.
    """
    work_s = seen.waiting_prompt_tokens / seen.capacity.prefill_tokens_per_s - 0.1 * seen.running
    return max(0.0, work_s) / spec.queue_drain_s


def held(seen: Observation) -> float:
    """Returns the replicas that have a place for every request that has not ended."""
    return seen.requests / seen.capacity.max_num_seqs


def size_for(spec: AutoscaleSpec, seen: Observation, load: float, utilization: float) -> float:
    """Returns the wish: a fleet of which ``load`` takes that share, that works off its queue and has all places."""
    return max(load / utilization + queue(spec, seen), held(seen))
