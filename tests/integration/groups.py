"""Runs a job on a cluster of its own and prints the states of the placement groups there, a JSON list for each change.

The job is interrupted once a group of it is removed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import ray

TIMEOUT_S = 200


def states() -> list[str]:
    return sorted(group["state"] for group in ray.util.placement_group_table().values())


def main() -> None:
    context = ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    address = f"cluster.address={context.address_info['gcs_address']}"
    seen: list[str] = []
    deadline = time.monotonic() + TIMEOUT_S
    # what the job and Ray's own log say is no state: the list is this script's output alone
    with subprocess.Popen([*sys.argv[1:], address], stdout=sys.stderr, start_new_session=True) as job:
        while time.monotonic() < deadline and (job.poll() is None or states() != seen):
            if (now := states()) != seen:
                print(json.dumps(now), flush=True)
                seen = now
            if "REMOVED" in seen and job.poll() is None:
                job.send_signal(signal.SIGINT)
            time.sleep(0.2)
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


main()
