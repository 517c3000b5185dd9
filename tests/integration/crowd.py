"""Runs a job on a cluster whose CPUs others hold, sends it SIGTERM, and prints how long it took to end, as JSON."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import ray

CPUS, HELD = 4, 2
END_S = 60


@ray.remote(num_cpus=1)
class Holder:
    def is_here(self) -> bool:
        return True


def main() -> None:
    context = ray.init(num_cpus=CPUS, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    holders = [Holder.remote() for _ in range(HELD)]
    assert all(ray.get([holder.is_here.remote() for holder in holders]))  # type: ignore[attr-defined]
    address = f"cluster.address={context.address_info['gcs_address']}"
    with subprocess.Popen([*sys.argv[1:], address], stdout=sys.stderr, start_new_session=True) as job:
        while ray.available_resources().get("CPU", 0) >= 1:  # until its replicas have what was left
            assert job.poll() is None
            time.sleep(0.1)
        time.sleep(1)  # for the driver's first look at them
        began = time.monotonic()
        job.send_signal(signal.SIGTERM)
        try:
            code = job.wait(END_S)
        except subprocess.TimeoutExpired:
            job.kill()
            code = None
        print(json.dumps({"code": code, "seconds": time.monotonic() - began}), flush=True)


main()
