"""For a latency objective, sizes and queues follow from the runs; a simulated engine is exact."""

from dataclasses import replace

import pytest

from foveate_runtime.cores import ANY_CORE
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.batching.tuning import Tuner
from foveate_serve.classification import Timing
from foveate_serve.observer import BatchRun

TIMING = Timing(
    decode=0.004,
    queue=0.0,
    infer=0.0,
    encode=0.0,
    total=0.004,
    batch=1,
    batch_size=1,
    backend="onnxruntime",
    device="cpu",
    variant="fp32",
)


class Engine:
    """An engine whose runs take `fixed + each * size` seconds, always asked for more than it does.

    So every batch is as large as it may be, and an answer takes the time of
    the queue before it.
    """

    def __init__(self, tuner: Tuner, *, fixed: float, each: float, factor: float = 1.0) -> None:
        self.tuner, self.fixed, self.each, self.factor = tuner, fixed, each, factor
        self.now = 0.0
        self.latency = 0.0

    def run(self, batches: int) -> None:
        for _ in range(batches):
            policy = self.tuner.policy
            seconds = self.fixed + self.each * policy.max_batch
            self.now += seconds
            run = BatchRun(size=policy.max_batch, gather=0, infer=seconds, split=0, lane=0)
            self.tuner.record_run(run, waiting=policy.max_queue, now=self.now)
            queue = self.factor * policy.max_queue * seconds / policy.max_batch
            self.latency = TIMING.decode + queue + seconds
            for _ in range(policy.max_batch):
                timing = replace(TIMING, queue=queue, infer=seconds, total=self.latency)
                self.tuner.record_timing(timing)


def tuned(objective: float, **bounds: object) -> Tuner:
    policy = BatchPolicy(objective=objective, **{"max_batch": 16, **bounds})
    return Tuner(policy, objective, lanes=1)


@pytest.mark.parametrize(
    ("objective", "size"),
    [
        (1.0, 16),  # there is time for the largest: two runs of 0.036 s
        (0.07, 8),  # two of 0.02 s, and not of 0.036 s, in 0.056 - 0.004 s
        (0.02, 1),  # two of 0.006 s, and none larger, in 0.016 - 0.004 s
        (0.001, 1),  # none fits, and something must run
    ],
)
def test_the_size_is_the_one_with_the_highest_throughput_that_fits_twice(
    objective: float, size: int
) -> None:
    tuner = tuned(objective)
    Engine(tuner, fixed=0.004, each=0.002).run(500)
    assert tuner.policy.max_batch == size


def test_where_larger_batches_do_not_pay_they_stay_small() -> None:
    tuner = tuned(1.0)
    Engine(tuner, fixed=0.0, each=0.002).run(500)
    # The largest size was tried, and was no better than those before it.
    assert set(tuner._seconds_of) == {1, 2, 4, 8, 16}
    assert (tuner.policy.max_batch, tuner.policy.max_delay) == (1, 0)


def test_what_was_measured_long_ago_does_not_keep_a_size_that_does_not_pay() -> None:
    tuner = tuned(1.0)
    engine = Engine(tuner, fixed=0.0, each=0.002)
    engine.run(500)
    assert tuner.policy.max_batch == 1
    # Everything takes longer from now on, of which larger sizes have shown nothing yet.
    engine.each = 0.003
    sizes = []
    for _ in range(100):
        engine.run(1)
        sizes.append(tuner.policy.max_batch)
    assert max(sizes) > 1
    # Each was left after the runs of one choice.
    assert sum(size > 1 for size in sizes) <= 8 * len({*sizes})
    assert sizes[-1] == 1


@pytest.mark.parametrize("objective", [0.1, 0.3, 1.0])
def test_the_queue_is_what_is_done_within_the_objective(objective: float) -> None:
    tuner = tuned(objective, max_queue=10_000)
    engine = Engine(tuner, fixed=0.004, each=0.002)
    engine.run(1000)
    assert 0.5 * objective < engine.latency <= 0.85 * objective


def test_what_the_model_leaves_out_is_made_up_for_by_what_is_measured() -> None:
    tuner = tuned(0.3, max_queue=10_000)
    engine = Engine(tuner, fixed=0.004, each=0.002, factor=3.0)
    worst = 0.0
    for _ in range(50):
        engine.run(1)
        worst = max(worst, engine.latency)
    engine.run(2000)
    assert worst > 0.3
    assert engine.latency < 0.3


def test_the_configuration_is_never_exceeded() -> None:
    policy = BatchPolicy(
        objective=2.0,
        max_batch=6,
        preferred_sizes=(3, 6),
        max_queue=12,
        priority_queues=(4, 8),
        cores=(ANY_CORE,) * 2,
    )
    tuner = Tuner(policy, 2.0, lanes=2)
    engine = Engine(tuner, fixed=0.004, each=0.002)
    for _ in range(100):
        engine.run(5)
        chosen = tuner.policy
        assert chosen.max_batch in {1, 3, 6}
        assert chosen.max_queue <= 12
        assert (chosen.priority_queues, chosen.cores) == (policy.priority_queues, policy.cores)
    assert tuner.policy.preferred_sizes == (3, 6)


def test_an_idle_engine_waits_only_where_pictures_come_together() -> None:
    def after(sizes: list[int]) -> BatchPolicy:
        tuner, now = tuned(0.5), 0.0
        for size in sizes * 100:
            seconds = 0.02 + 0.001 * size
            now += seconds + 0.005
            run = BatchRun(size=size, gather=0, infer=seconds, split=0, lane=0)
            tuner.record_run(run, waiting=0, now=now)
        return tuner.policy

    # One caller who waits for each answer would only be held up.
    assert after([1]).max_delay == 0
    together = after([2, 3, 1, 4, 8, 16])
    assert together.max_batch == 16
    assert 0 < together.max_delay < 0.5
