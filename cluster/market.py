"""How Ray's scheduler tells cheaper machines that may be taken back from those that stay."""

from __future__ import annotations

from conf.schema.node_type import NodeTypeSpec

MARKET = "market-type"
"""The label of a node; a task or an actor may ask for one: label_selector={"market-type": "on-demand"}."""


def market_labels(node: NodeTypeSpec) -> dict[str, str]:
    """Returns Ray's labels of such a machine."""
    return {MARKET: "spot" if node.spot else "on-demand"}
