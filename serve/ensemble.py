"""The models of one service, each an application of Ray Serve: started, watched, updated and drained together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace

from serve.begin import begin
from serve.catalogue import HEAR_S, publish
from serve.deployment import build_replicas
from serve.plan import ServicePlan, catalogue_of
from serve.service import POLL_S, Build, Service, ServiceFailed, ServiceLost
from serve.state import Replicas


class Ensemble:
    """What runs on a cluster for one service. Its proxy learns from the catalogue which models there are."""

    def __init__(
        self,
        plan: ServicePlan,
        interrupted: threading.Event,
        say: Callable[[str], None],
        build: Build = build_replicas,
    ) -> None:
        """Args: what runs; what says that it should end; where news go; what makes the replicas of a model."""
        self.plan = plan
        self._interrupted, self._say, self._build = interrupted, say, build
        self._given_up = threading.Event()
        self._services = {part.key: self._service(part) for part in plan.parts}
        self._has_begun = False

    def start(self) -> bool:
        """Starts Ray Serve, and the replicas of all models at once.

        Returns:
            Whether all were ready before somebody interrupted.

        Raises:
            UserError: when the cluster serves already.
            ServiceFailed: when one of them does not become ready.
        """
        begin(self.plan)
        self._has_begun = True
        publish(catalogue_of(self.plan))
        return self._together((service.open for service in self._services.values()), is_all=True)

    def roll(self, plan: ServicePlan, surge: Mapping[str, int]) -> bool:
        """Puts the replicas of another plan in the place of these, without a moment when a model that stays has none.

        Args:
            plan: the other plan.
            surge: by the key of each model that is new or differs: how many of its replicas may be there beside its old
                ones, in percent of their number.

        Returns:
            Whether all were ready before somebody interrupted.

        Raises:
            ServiceFailed: when they do not become ready; the old ones go on.
        """
        return self._change(plan, surge, lambda service, part: service.roll(part, surge[part.key]))

    def replace(self, plan: ServicePlan, keys: Iterable[str]) -> bool:
        """Drains models and then starts those of another plan in their place; requests to them get 503 meanwhile.

        Args:
            plan: the other plan.
            keys: of the models that are new or differ.

        Returns:
            Whether all were ready before somebody interrupted.

        Raises:
            ServiceFailed: when they do not become ready; the old ones are started again.
            ServiceLost: when those do not become ready either.
        """
        gone = [self._services.pop(key) for key in self._services.keys() - {part.key for part in plan.parts}]
        if gone:  # what they have may be what the others need
            kept = tuple(other for other in self.plan.others if other.key in self._services)
            publish(catalogue_of(replace(self.plan, others=kept)))
            time.sleep(2 * HEAR_S)
            self._together(service.leave for service in gone)
        try:
            return self._change(plan, keys, lambda service, part: service.replace(part))
        except ServiceFailed as error:
            self._services |= {service.plan.key: service for service in gone}
            try:
                self._together(service.open for service in gone)
            except ServiceFailed as again:
                raise ServiceLost(f"{error}; the former configuration does not start either: {again}") from error
            publish(catalogue_of(self.plan))
            raise

    def close(self) -> None:
        """Takes no more requests, and returns when the replicas have ended those that they had."""
        self._together(service.close for service in self._services.values())

    def stop(self) -> None:
        """Drains the replicas and ends Ray Serve, where it was started."""
        import ray.serve as rayserve

        if self._has_begun:
            self.close()
            publish(None)
            rayserve.shutdown()

    def at_size(self, plan: ServicePlan) -> ServicePlan:
        """Returns a plan with as many replicas of each model as are wanted of it at this moment."""

        def sized(part: ServicePlan) -> ServicePlan:
            service = self._services.get(part.key)
            return part if service is None else part.sized(service.size)

        return replace(sized(plan), others=tuple(map(sized, plan.others)))

    def look(self) -> Replicas:
        """Tells of replicas that come and go, and returns how many there are, of all models together.

        Raises:
            ServiceFailed: when a model is gone.
        """
        found = [service.look() for service in self._services.values()]
        return Replicas(running=sum(each.running for each in found), wanted=sum(each.wanted for each in found))

    def _service(self, part: ServicePlan) -> Service:
        def say(news: str) -> None:
            self._say(f"{part.job.model.name}: {news}" if len(self._services) > 1 else news)

        return Service(part, self._given_up, say, self._build)

    def _change(self, plan: ServicePlan, keys: Iterable[str], change: Callable[[Service, ServicePlan], bool]) -> bool:
        parts = {part.key: part for part in plan.parts}
        changed = {key: self._services[key].plan for key in keys if key in self._services}
        added = {key: self._service(parts[key]) for key in keys if key not in self._services}
        calls = [lambda key=key: change(self._services[key], parts[key]) for key in changed]
        calls += [service.open for service in added.values()]
        self._services |= added
        try:
            is_ready = self._together(calls)
        except ServiceFailed as error:
            self._undo(changed, added, change, error)
            raise
        if is_ready:
            self._settle(plan)
        return is_ready

    def _undo(
        self,
        changed: Mapping[str, ServicePlan],
        added: Iterable[str],
        change: Callable[[Service, ServicePlan], bool],
        error: ServiceFailed,
    ) -> None:
        """Goes back to what was; a model that failed has done so by itself."""
        back = [(self._services[key], part) for key, part in changed.items() if self._services[key].plan is not part]
        calls = [self._services.pop(key).leave for key in added]
        try:
            self._together(
                [*calls, *(lambda service=service, part=part: change(service, part) for service, part in back)]
            )
        except ServiceFailed as again:
            raise ServiceLost(f"{error}; the former configuration does not start either: {again}") from error

    def _settle(self, plan: ServicePlan) -> None:
        """Tells which models there are now, and lets go of those that are no more."""
        gone = self._services.keys() - {part.key for part in plan.parts}
        self.plan = plan
        publish(catalogue_of(plan))
        if gone or plan.others:
            time.sleep(2 * HEAR_S)  # until then requests may go where the old names were
        self._together([self._services.pop(key).leave for key in gone])

    def _together(self, calls: Iterable[Callable[[], bool | None]], is_all: bool = False) -> bool:
        """Does several things at once.

        Args:
            calls: what; each returns False where it was interrupted.
            is_all: whether one has no use without the others: when one fails, these are interrupted.

        Returns:
            Whether none was interrupted.

        Raises:
            ServiceFailed: what the first one that failed has raised, or the one after which nothing runs.
        """
        calls = list(calls)
        self._given_up.clear()
        pool = ThreadPoolExecutor(max(1, len(calls)))
        try:
            futures = [pool.submit(call) for call in calls]
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, POLL_S, FIRST_EXCEPTION)
                if self._interrupted.is_set() or (is_all and any(future.exception() for future in done)):
                    self._given_up.set()
        finally:
            pool.shutdown(wait=False)  # a second Ctrl-C waits for nobody
        errors = [error for future in futures if (error := future.exception())]
        for error in sorted(errors, key=lambda error: not isinstance(error, ServiceLost)):
            raise error
        return all(future.result() is not False for future in futures)
