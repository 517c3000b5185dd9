"""Replicas on Ray Serve: deploys them, watches them, drains them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from conf.schema.serve import ProxyForm
from serve.catalogue import prefix_of
from serve.cause import cause_of
from serve.deployment import CLOSE_S, build_replicas
from serve.gate import build_gate
from serve.notice import Death, Size, forget_notices, read_notice
from serve.plan import ServicePlan
from serve.router.past import REPLICA
from serve.state import Replicas

POLL_S = 0.25
LEAVE_S = 7.0
"""Seconds beyond `deployment.drain_s` until all is over."""
_MAKING = threading.Lock()
"""Ray Serve makes an application, or reads how one stands, in one thread at a time: for each configuration it marks
modules for its pickler, and unmarks them."""
Build = Callable[[ServicePlan, int], Any]
"""Makes replicas; see `serve.deployment.build_replicas`."""


class ServiceFailed(Exception):
    """The service cannot answer, for a cause that is no mistake of the user's."""


class ServiceLost(ServiceFailed):
    """An update failed, and the former configuration does not start again."""


class Service:
    """A model that runs on a cluster; `serve.ensemble` holds those of one service.

    It is one application of Ray Serve, in three forms: the gate alone; the gate with replicas that start behind it; and
    the replicas. Ray Serve gives the address from one form to the next at once, and drains what a form has lost.
    """

    def __init__(
        self,
        plan: ServicePlan,
        interrupted: threading.Event,
        say: Callable[[str], None],
        build: Build = build_replicas,
    ) -> None:
        """Args: what runs; what says that it should end; where news go; what makes the replicas."""
        self.plan = plan
        self._interrupted = interrupted
        self._say = say
        self._build = build
        self._states: dict[str, int] | None = None
        self._size: Size | None = None
        self._death: Death | None = None
        self._is_open = False

    @property
    def _name(self) -> str:
        return self.plan.app

    def open(self) -> bool:
        """Starts the replicas.

        Returns:
            Whether all were ready before somebody interrupted.

        Raises:
            ServiceFailed: when they do not become ready.
        """
        return self._open(self.plan)

    def roll(self, plan: ServicePlan, surge_percent: int) -> bool:
        """Puts the replicas of another plan in the place of these, without a moment when none takes requests.

        Args:
            plan: the other plan.
            surge_percent: of its replicas that may be there beside the old ones; none needs two old replicas at least.

        Returns:
            Whether all were ready before somebody interrupted.

        Raises:
            ServiceFailed: when they do not become ready; the old ones go on.
        """
        try:
            is_ready = self._deploy(lambda: self._made(plan, surge_percent), plan)
        except ServiceFailed:
            self._deploy(lambda: self._made(self.plan, surge_percent), self.plan)
            raise
        if is_ready:
            self.plan = plan
        return is_ready

    def replace(self, plan: ServicePlan) -> bool:
        """Drains these replicas and then starts those of another plan; requests get 503 meanwhile.

        Returns:
            Whether all were ready before somebody interrupted.

        Raises:
            ServiceFailed: when they do not become ready; the old ones are started again.
            ServiceLost: when those do not become ready either.
        """
        self.close()
        try:
            is_ready = self._open(plan)
        except ServiceFailed as error:
            self.close()
            try:
                self._open(self.plan)
            except ServiceFailed as again:
                raise ServiceLost(f"{error}; the former configuration does not start either: {again}") from error
            raise
        if is_ready:
            self.plan = plan
        return is_ready

    def close(self) -> None:
        """Takes no more requests, and returns when the replicas have ended those that they had.

        They have `deployment.drain_s` from now on. Ray Serve counts from when it tells a replica to end, which is later
        where requests wait for one: what is left then is killed here.
        """
        import ray.serve as rayserve

        deadline = time.monotonic() + self.plan.job.deployment.drain_s
        if self.plan.form is ProxyForm.direct:
            rayserve.delete(self._name, _blocking=False)
        else:
            if self._is_open:
                self._run(lambda: build_gate(self._made(self.plan, 0)))
                self._wait_for_queue(deadline)
            self._is_open = False
            self._run(build_gate)
        forget_notices(self._name)
        if not self._are_gone(deadline + CLOSE_S):
            self._kill()
            self._are_gone(deadline + LEAVE_S)

    def leave(self) -> None:
        """Does as `close` does, and then nothing stands there any more."""
        import ray.serve as rayserve

        self.close()
        rayserve.delete(self._name, _blocking=False)

    @property
    def size(self) -> int:
        """Replicas that are wanted at this moment."""
        size = read_notice(self._name, Size) if self.plan.job.engine.is_elastic else None
        return self.plan.num_replicas if size is None else size.target

    def look(self) -> Replicas:
        """Tells of replicas that come and go, and why, and returns how many there are.

        Raises:
            ServiceFailed: when the service is gone.
        """
        import ray.serve as rayserve

        with _MAKING:
            status = rayserve.status().applications.get(self._name)
        if status is None:
            raise ServiceFailed("the service is gone: somebody else has stopped it")
        before, self._size = self._size, (size := read_notice(self._name, Size))
        if size is not None and size != before and size.was != size.target:
            self._say(f"replicas {size.was} -> {size.target}: {size.reason}")
        before_death, self._death = self._death, (death := read_notice(self._name, Death))
        if self._states is not None and death is not None and death != before_death:
            self._say(f"the engine of replica {death.replica} is dead, another one takes its place: {death.cause}")
        replicas = status.deployments.get(REPLICA)
        states = {state.lower(): count for state, count in replicas.replica_states.items()} if replicas else {}
        if self._states is not None and states != self._states:
            shown = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
            self._say(f"replicas: {shown or 'none'}")
        self._states = states
        return Replicas(running=states.get("running", 0), wanted=self.size)

    def _are_gone(self, deadline: float) -> bool:
        """Waits for the end of all replicas; returns whether it has come."""
        # Ray Serve's status forgets a deployment at once; its replicas are there until their requests have ended
        while self._actors():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _kill(self) -> None:
        """Ends the replicas that are left, whatever they hold."""
        import ray

        for name in self._actors():
            with suppress(ValueError):  # it has just ended
                ray.kill(ray.get_actor(name, namespace="serve"))

    def _wait_for_queue(self, deadline: float) -> None:
        """Returns when no request waits for a replica: it would find none, once they are told to end."""
        import ray
        from ray.exceptions import RayError

        calm = 0
        while calm < 3 and time.monotonic() < deadline:
            try:
                actors = [ray.get_actor(name, namespace="serve") for name in self._actors()]
                held = ray.get([actor.get_num_ongoing_requests.remote() for actor in actors], timeout=2 * POLL_S)
            except (RayError, ValueError):  # one that dies or hangs
                held = []
            # a request that waits is given to the next free replica within half a second
            calm = calm + 1 if not held or min(held) < self.plan.job.max_ongoing_requests else 0
            time.sleep(POLL_S)

    def _actors(self) -> list[str]:
        """Names of the replicas' actors, of those that drain too."""
        import ray

        named: list[Any] = ray.util.list_named_actors(all_namespaces=True)
        beginning = f"SERVE_REPLICA::{self._name}#{REPLICA}#"
        return [actor["name"] for actor in named if actor["name"].startswith(beginning)]

    def _made(self, plan: ServicePlan, surge_percent: int) -> Any:
        """The replicas of a plan, as many as are wanted now: what is deployed again begins with what it is told."""
        if not plan.job.engine.is_elastic:
            forget_notices(self._name)
        return self._build(plan.sized(self.size), surge_percent)

    def _open(self, plan: ServicePlan) -> bool:
        if plan.form is not ProxyForm.direct:  # HAProxy says itself that nobody is there
            if not self._deploy(lambda: build_gate(self._made(plan, 0)), plan):
                return False
            self._is_open = True
        return self._deploy(lambda: self._made(plan, 0), plan)

    def _deploy(self, make: Callable[[], Any], plan: ServicePlan) -> bool:
        """Returns whether all of an application became ready before somebody interrupted.

        Raises:
            ServiceFailed: when it does not.
        """
        import ray.serve as rayserve
        from ray.serve.schema import ApplicationStatus

        self._run(make)
        self._states = None  # what an update does is told of elsewhere
        timeout_s = plan.job.engine.start_timeout_s
        deadline = time.monotonic() + timeout_s
        while not self._interrupted.wait(POLL_S):
            with _MAKING:
                status = rayserve.status().applications.get(self._name)
            if status is not None and status.status is ApplicationStatus.RUNNING:
                return True
            if status is not None and status.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                messages = [status.message, *(deployment.message for deployment in status.deployments.values())]
                which = f" of deployment.models.{plan.key}" if plan.key else ""
                raise ServiceFailed(f"the engine{which} does not start: {cause_of(messages)}")
            if time.monotonic() > deadline:
                raise ServiceFailed(f"not ready after engine.start_timeout_s={timeout_s:g}")
        return False

    def _run(self, make: Callable[[], Any]) -> None:
        from ray.serve.api import RunTarget, run_many

        with _MAKING:
            target = RunTarget(make(), name=self._name, route_prefix=prefix_of(self.plan.key) or "/")
            run_many([target], wait_for_applications_running=False)
