"""The four policies behind one function, and one that holds a fleet as it is."""

from __future__ import annotations

from conf.schema.autoscale import AutoscalePolicy, AutoscaleSpec
from serve.autoscale import forecast, requests, slo, tokens
from serve.autoscale.forecast import Outlook
from serve.autoscale.observation import Decision, Observation
from serve.autoscale.requests import Delay
from serve.autoscale.settle import Calm
from serve.autoscale.slo import Share

Memory = Calm | Share | Outlook | Delay
"""What a policy remembers from one decision to the next; plain data, so that it can be kept anywhere."""


def begin(spec: AutoscaleSpec) -> Memory:
    """Returns the memory of a policy that has decided nothing yet."""
    match spec.policy:
        case AutoscalePolicy.tokens:
            return Calm()
        case AutoscalePolicy.slo:
            return Share(utilization=spec.utilization)
        case AutoscalePolicy.forecast:
            return Outlook()
        case AutoscalePolicy.requests:
            return Delay()


def decide(spec: AutoscaleSpec, seen: Observation, memory: Memory) -> tuple[Decision, Memory]:
    """Returns how many replicas there should be, and what to remember. Neither argument is changed.

    Args:
        spec: the policy, its bounds and times.
        seen: the fleet and its load at one moment, no earlier than the last one seen.
        memory: of the decision before; `begin` has the first.
    """
    match memory:
        case Calm():
            return tokens.decide(spec, seen, memory)
        case Share():
            return slo.decide(spec, seen, memory)
        case Outlook():
            return forecast.decide(spec, seen, memory)
        case Delay():
            return requests.decide(spec, seen, memory)
