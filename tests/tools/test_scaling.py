"""The simulation of more cores than there are (benchmarks/many_cores.py), and what it is fed with."""

from __future__ import annotations

import pytest
import torch
from benchmarks.many_cores import Machine, makespan, simulate, task_seconds
from benchmarks.scaling import Case, memory_bytes
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.floats(0.001, 10.0), max_size=60), st.integers(1, 20))
def test_makespan_lies_between_its_bounds(tasks: list[float], threads: int) -> None:
    span, work = makespan(tasks, threads), sum(tasks)
    assert max(work / threads, max(tasks, default=0.0)) <= span * (1 + 1e-9)
    # Nobody waits while there is a task: the list schedule's bound (Graham, 1966).
    assert span <= work / threads + max(tasks, default=0.0) * (1 - 1 / threads) + 1e-9


def test_makespan_of_known_schedules() -> None:
    assert makespan([], 3) == 0.0
    assert makespan([1.0, 2.0, 3.0], 1) == 6.0
    assert makespan([1.0] * 8, 4) == 2.0
    assert makespan([4.0, 1.0, 1.0, 1.0], 2) == 4.0  # the second thread takes its own two, then one of the first's
    assert makespan([1.0], 64) == 1.0


def test_a_simulation_says_what_limits_it() -> None:
    machine = Machine(handover=0.001, core_bandwidth=10.0, bandwidth=40.0)
    stages = {(0, 0, 0): [1.0] * 8, (1, 0, 0): [1.0], (2, 0, 0): [1.0] * 4, (3, 0, 0): [3.0, 1.0, 1.0, 1.0]}
    alone = simulate(stages, {}, 1, machine, None)
    found = simulate(stages, {(2, 0, 0): 100.0}, 4, machine, alone)
    assert alone.seconds == pytest.approx(19.0)
    assert found.seconds == pytest.approx(2.0 + 1.0 + 100.0 / 40.0 + 3.0 + 4 * 0.005)
    reasons = [found.layers[layer].reason for layer in range(4)]
    assert reasons == ["barriers", "too few tasks", "memory", "uneven tasks"]
    assert [found.layers[layer].lost for layer in range(1, 4)] == pytest.approx([3.02, 6.02, 6.02])


@pytest.mark.parametrize("threads", [1, 3, 64])
def test_every_task_of_a_plan_is_timed(threads: int) -> None:
    case = Case("seed", 2, 32)
    with torch.no_grad():
        before = case.fast(case.x)
    plan, times = case.times(threads, 2)
    assert len(times) == 2
    assert len(times[0]) == len(times[1])
    stages = task_seconds(times, min)  # raises KeyError where a task is missing
    assert {layer for layer, _, _ in stages} >= {i for i, row in enumerate(plan.layers()) if row["multiply_adds"]}
    assert all(seconds >= 0.0 for tasks in stages.values() for seconds in tasks)
    assert simulate(stages, memory_bytes(plan, stages, threads, Machine()), threads, Machine(), None).seconds > 0.0
    with torch.no_grad():
        assert torch.equal(case.fast(case.x), before)
