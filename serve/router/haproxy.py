"""What Ray Serve's HAProxy configuration lacks; run in place of the haproxy program, which it becomes.

Ray writes a configuration, starts ``haproxy -db -f FILE ...`` and offers no way to change a line. It does let one name
the program (RAY_SERVE_HAPROXY_BINARY_PATH): `serve/router/proxy.py` names this file. Only the standard library is
imported: it runs at each reload.

Source: ray 2.60, ray/serve/_private/haproxy_templates.py.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

ERRORS = {
    400: ("Bad Request", "invalid_request_error", "the request is not HTTP that can be read", ""),
    408: ("Request Timeout", "timeout", "the request did not arrive in time", ""),
    500: ("Internal Server Error", "internal_error", "the proxy failed", ""),
    502: ("Bad Gateway", "internal_error", "the replica ended before it answered", "retry-after: 1\r\n"),
    503: ("Service Unavailable", "service_unavailable", "no replica can be reached now", "retry-after: 1\r\n"),
    504: ("Gateway Timeout", "timeout", "the replica did not answer in time", ""),
}
HEADER_TIMEOUT_S = 30
"""A client that has not sent all headers by then is refused."""
AGAIN, AGAIN_HEADER = "again", "x-manta-again"
"""HAProxy itself as a server, by another connection, once. A process that was reloaded away still has connections of
clients, and a request that comes on one of them is to reach replicas that are newer than the process."""
OWN_CONNECTION = "    http-reuse never\n    option http-server-close\n"
"""Kept ones break where nobody is told, see `_EDITS`; and one to HAProxy itself ends in the process that had the port
when it was made, which may be the one that asks."""
_EDITS: list[tuple[str, str]] = [
    # statistics and metrics listen on every address, for everybody
    (r"(?ms)^listen stats\n.*\Z", ""),
    (r"(?m)^frontend prometheus\n(?:    .*\n)+", ""),
    # anybody on this machine could command it
    (r"(?m)^(    stats socket \S+ mode) 666 ", r"\1 600 "),
    # addresses of clients go to no log
    (r"(?m)^    log \S+ local0 info\n", ""),
    (r"(?m)^    errorfile .*\n", ""),
    # Each request has a connection of its own to its replica. Where one that answered before ends, HAProxy tells the
    # client nothing and ends its connection too, for the client to ask again; so it does where a second attempt finds
    # such a connection, left of a replica that has just been killed
    (r"(?m)^    http-reuse always\n", OWN_CONNECTION),
    # Ray answers 503 where no router does: any replica is better. What it takes then is leastconn's
    (r"(?m)^    http-request return status 503 .*Ingress request router failed.*\n", ""),
    # the service has all paths: where none is known, it is about to come or has ended
    (
        r"(?m)^    http-request return status 404 .*not found\. Ping .*\n",
        "    http-request return status 503 default-errorfiles\n",
    ),
    # Where the chosen replica is not known here, Ray asks a Python proxy
    (
        r"(?m)^    use_backend .*\"?unknown_replica_id\"?.*\n",
        f'    use_backend {AGAIN} if {{ var(txn.ingress_request_router_failed) -m str "unknown_replica_id" }}'
        f" !{{ req.hdr({AGAIN_HEADER}) -m found }}\n",
    ),
    (r"(?m)^    use-server .*\"?unknown_replica_id\"?.*\n", ""),
]


_ASKS = re.compile(r"(?m)^(    http-request) lua\.route_via_ingress_request_router (if .*)\n")
_CHOSEN = re.compile(r"(?m)^backend \S+-via-ingress-request-router\n(?:(?:    .*)?\n)+")
_REPLICA = re.compile(r"(?m)^    server .*(?<! backup)$")


def amended(config: str, folder: str, body_timeout_s: float) -> str:
    """Returns Ray's configuration with what is ours.

    Args:
        config: as Ray wrote it.
        folder: where the error files are.
        body_timeout_s: how long a request's body may take to arrive.
    """
    for pattern, ours in _EDITS:
        config = re.sub(pattern, ours, config)
    config = _unasked(config)
    wait = round(body_timeout_s * 1000)
    config = re.sub(r"(?m)^(    http-request wait-for-body time) \S+ ", rf"\1 {wait}ms ", config)
    host, port = re.findall(r"(?m)^    bind (\S*):(\d+)$", config)[-1]
    host = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}.get(host, host)
    config += f"\nbackend {AGAIN}\n{OWN_CONNECTION}"
    config += f"    http-request set-header {AGAIN_HEADER} 1\n    server self {host}:{port}\n"
    lines = [f"    timeout http-request {HEADER_TIMEOUT_S}s"]
    lines += [f"    errorfile {status} {folder}/{status}.http" for status in ERRORS]
    return config.replace("defaults\n    mode http\n", "defaults\n    mode http\n" + "\n".join(lines) + "\n", 1)


def _unasked(config: str) -> str:
    """Returns a configuration that asks no router where there is one replica: 1 ms of CPU and two hops a request.

    A process that is being reloaded away asks on: what it knows of replicas is old.
    """
    chosen = _CHOSEN.findall(config)
    if len(chosen) != 1 or len(_REPLICA.findall(chosen[0])) != 1:
        return config
    ask = r"\1 lua.route_via_ingress_request_router \2 { stopping }\n"
    return _ASKS.sub(ask + r"\1 set-var(txn.via_ingress_request_router) str(1) \2 !{ stopping }\n", config)


def error_page(status: int) -> str:
    """Returns an answer of HAProxy's own, in the shape of OpenAI's errors."""
    reason, kind, message, headers = ERRORS[status]
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})
    return (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"{headers}connection: close\r\n\r\n{body}"
    )


def main() -> None:
    """Amends the file of ``-f`` and becomes haproxy. Arguments: the program, the body's timeout in s, haproxy's own."""
    program, body_timeout_s, *arguments = sys.argv[1:]
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        for status in ERRORS:
            (path.parent / f"{status}.http").write_text(error_page(status))
        path.write_text(amended(path.read_text(), str(path.parent), float(body_timeout_s)))
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    main()
