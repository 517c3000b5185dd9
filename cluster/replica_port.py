"""Where the replicas of Ray Serve listen for one another.

Source: ray 2.60, ray/serve/_private/replica.py, `_on_initialized`: a gRPC server on every address, without a token.
"""

from __future__ import annotations

from typing import Any


def listen_on_this_node() -> None:
    """Has this replica listen on its node's address alone; to be called as it is made, before it listens.

    On a cluster of this machine's own that is 127.0.0.1.
    """
    import ray
    from ray._common.tls_utils import add_port_to_grpc_server
    from ray.serve._private import replica

    node = ray.util.get_node_ip_address()

    def listen(server: Any, address: str) -> int:
        port = address.rpartition(":")[2]
        return add_port_to_grpc_server(server, f"[{node}]:{port}" if ":" in node else f"{node}:{port}")

    replica.add_port_to_grpc_server = listen
