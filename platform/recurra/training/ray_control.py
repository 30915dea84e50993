"""What Ray Train's controller is given in place of its own parts. The controller's process imports this file, so it imports
no torch."""

from __future__ import annotations

from typing import Any

from recurra.config.env import apply_ray_environment

apply_ray_environment()  # Ray reads its variables when it is imported.

from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.preemption import PreemptionWatcher
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from recurra.training.failures import comes_again, own_error


class FailForGood(DefaultFailurePolicy):  # type: ignore[misc]
    """Workers are not started anew for an error of ours that comes again."""

    def make_decision(self, training_failed_error: Any) -> Any:
        if comes_again(own_error(getattr(training_failed_error, "worker_failures", {}))):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class OneSize(FixedScalingPolicy):  # type: ignore[misc]
    """Tells no autoscaler what the run needs: its placement group does. Ray's way is an actor that outlives the run."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class WatchForPreemption(PreemptionCallback):  # type: ignore[misc]
    """Asks from a thread of the controller which nodes are about to go; Ray's own watcher is a process for each attempt, and
    switched off in `RAY_ENVIRONMENT`."""

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._stop_watcher()
        ranks: dict[str, list[int]] = {}
        actors: dict[int, Any] = {}
        for worker in worker_group.get_workers():
            rank = worker.distributed_context.world_rank
            ranks.setdefault(worker.metadata.node_id, []).append(rank)
            actors[rank] = worker.actor
        self._watcher = PreemptionWatcher(ranks, self._poll_interval_s, actors)

    def _stop_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher._stop_event.set()
            self._watcher = None
