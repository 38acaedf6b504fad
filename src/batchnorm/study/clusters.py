"""Clusters that train runs: Ray and Dask, as they are running already, or started on this machine for the study.

The machines of a cluster need this package, and the module of the user's model, as this one has them. Which machine
trains a run does not change it, as long as their processors take PyTorch through the same instructions.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from batchnorm.errors import ArgumentError
from batchnorm.study.workers import WorkerDiedError, usable_cores


class Ray:
    """A Ray cluster: the one that this process is connected to, that RAY_ADDRESS names, or a local one."""

    name = "ray"

    def __init__(self, jobs: int | None) -> None:
        """Connect to a cluster, or start one with so many processors.

        Raises:
            ArgumentError: if the cluster cannot be reached.
        """
        import ray

        self._ray: Any = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            local: dict[str, Any] = {"num_cpus": jobs or usable_cores(), "include_dashboard": False}
            try:
                ray.init(
                    log_to_driver=False, logging_level=logging.ERROR, configure_logging=True,
                    **({} if "RAY_ADDRESS" in os.environ else local),
                )  # fmt: skip
            except Exception as error:  # of whatever kind a network brings about
                raise ArgumentError(f"--backend ray: no cluster can be reached or started: {error}") from None
        self.jobs = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.room = 2 * self.jobs
        self._remote: Any = ray.remote(_called)

    def share(self, value: Any) -> Any:
        """Put the value into the cluster's store."""
        return self._ray.put(value)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Hand a call over to Ray."""
        return _passed_on(self._remote.remote(function, *arguments).future())

    def close(self) -> None:
        """Leave the cluster; end it, if it was started for the study."""
        if self._ours:
            self._ray.shutdown()


class Dask:
    """A Dask cluster: that of the current client, that DASK_SCHEDULER_ADDRESS names, or a local one."""

    name = "dask"

    def __init__(self, jobs: int | None) -> None:
        """Connect to a cluster, or start one with so many worker processes of a thread each.

        Raises:
            ArgumentError: if the cluster cannot be reached.
        """
        from dask import config
        from distributed import Client, LocalCluster, get_client

        self._cluster: Any = None
        self._ours = False
        try:
            self._client: Any = get_client()
        except ValueError:  # where there is no client
            self._ours = True
            try:
                address = config.get("scheduler-address", None)
                if address is None:
                    quiet: dict[str, Any] = {"dashboard_address": None, "silence_logs": logging.CRITICAL}
                    self._cluster = LocalCluster(n_workers=jobs or usable_cores(), threads_per_worker=1, **quiet)
                self._client = Client(self._cluster if address is None else address)
            except Exception as error:  # of whatever kind a network brings about
                raise ArgumentError(f"--backend dask: no cluster can be reached or started: {error}") from None
        self.jobs = jobs or max(1, sum(self._client.nthreads().values()))
        self.room = 2 * self.jobs
        self._executor: Any = self._client.get_executor(pure=False)

    def share(self, value: Any) -> Any:
        """Send the value to every worker."""
        return self._client.scatter(value, broadcast=True, hash=False)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Hand a call over to Dask."""
        return _passed_on(self._executor.submit(_called, function, *arguments))

    def close(self) -> None:
        """Leave the cluster; end it, if it was started for the study."""
        self._executor.shutdown(wait=False)
        if self._ours:
            with suppress(Exception):  # workers that were killed are as good as ended
                self._client.close(timeout=2)
        if self._cluster is not None:
            with suppress(Exception):
                self._cluster.close(timeout=2)


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except SystemExit as error:  # which would end the worker
        raise RuntimeError(f"SystemExit: {error}") from None


def _passed_on(theirs: "Future[Any]") -> "Future[Any]":
    """Return a future with the exceptions of this package and of Python, without what a cluster wraps them in."""
    ours: Future[Any] = Future()

    def pass_on(done: "Future[Any]") -> None:
        if done.cancelled():
            ours.set_exception(WorkerDiedError("the cluster has dropped a run"))
            return
        error: Any = done.exception()
        cause = getattr(error, "cause", None)
        if error is None:
            ours.set_result(done.result())
        elif isinstance(cause, Exception):
            ours.set_exception(cause)
        elif type(error).__module__.partition(".")[0] in ("ray", "distributed"):
            ours.set_exception(WorkerDiedError(f"a worker of the cluster has failed: {type(error).__name__}"))
        else:
            ours.set_exception(error)

    theirs.add_done_callback(pass_on)
    return ours
