"""Cells that are timed in turn: clocks, rounds, time budget, failures as results, the allocator's peak."""

from collections.abc import Callable

import pytest
import torch

from harness.profilers import timing
from harness.profilers.timing import NOT_RUN, AllocationClock, Clock, ProcessorClock, RefusedError, Rounds, interleaved

CPU = torch.device("cpu")


class FakeTime:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    monkeypatch.setattr(timing, "time", clock := FakeTime())
    return clock


def cell(log: list[str], name: str, fake: FakeTime | None = None, seconds: float = 0.0) -> Callable[[Clock], None]:
    def run(clock: Clock) -> None:
        log.append(name)
        clock.start()
        if fake is not None:
            fake.now += seconds
        clock.mark("work")
        clock.stop()

    return run


# -------------------------------------------------------------------------------------------------- in turn


def test_cells_take_turns_in_alternating_order() -> None:
    log: list[str] = []
    results = interleaved([cell(log, "a"), cell(log, "b"), cell(log, "c")], Rounds(3, 1), CPU)
    assert "".join(log) == "abc" + "abc" + "cba" + "abc"
    assert [(each.rounds, len(each.seconds["work"]), each.error) for each in results] == [(3, 3, "")] * 3


def test_a_stage_takes_what_it_takes_and_parts_of_it_add_up(fake: FakeTime) -> None:
    clock = ProcessorClock()
    clock.start()
    for seconds in (1.0, 2.0):
        fake.now += seconds
        clock.mark("long")
        fake.now += seconds / 8
        clock.mark("short")
    assert clock.seconds() == {"long": 3.0, "short": 0.375}


def test_a_gpu_is_waited_for_at_the_edges_of_a_round_only(fake: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeEvent:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self, stream: object) -> None:
            self.at = fake.now

        def elapsed_time(self, later: "FakeEvent") -> float:
            return 1000 * (later.at - self.at)

    called: list[str] = []
    allocated = iter([70, 50, 90])
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: called.append("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: called.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: called.append("read") or next(allocated))
    clock = timing.EventClock(torch.device("cuda", 0))
    clock.start()
    for stage, seconds in (("one", 1.0), ("two", 2.0), ("one", 4.0)):
        fake.now += seconds
        clock.mark(stage)
    clock.stop()
    assert called == ["wait", "reset", *["read", "reset"] * 3, "wait"]
    assert clock.seconds() == {"one": 5.0, "two": 2.0}
    assert clock.peaks() == {"one": 90, "two": 50}


def test_median_and_quartiles() -> None:
    timed = timing.Timed()
    timed.seconds["stage"] = [0.005, 0.001, 0.002, 0.004, 0.003]
    assert timed.quartiles_ms("stage") == pytest.approx((3, 2, 4))


def test_when_the_time_is_used_up_rounds_are_dropped(fake: FakeTime) -> None:
    log: list[str] = []
    cells = [cell(log, name, fake, seconds) for name, seconds in (("a", 1), ("b", 2), ("c", 4))]
    results = interleaved(cells, Rounds(50, 0, seconds=16), CPU)
    assert "".join(log) == "abc" + "cba" + "a"  # of the last two seconds, b would take both
    assert [each.rounds for each in results] == [3, 2, 2]
    assert not any(each.error for each in results)


def test_cells_that_were_never_started_say_so(fake: FakeTime) -> None:
    log: list[str] = []
    cells = [cell(log, name, fake, 1) for name in "abc"]
    results = interleaved(cells, Rounds(3, 0, seconds=0.5), CPU)
    assert log == ["a"]  # of a cell that never ran nobody knows how long it takes
    assert [each.error for each in results] == ["", NOT_RUN, NOT_RUN]
    assert interleaved(cells, Rounds(3, 0, seconds=60).after(60), CPU)[0].error == NOT_RUN


def test_long_cells_get_the_least_number_of_rounds_and_short_ones_more(fake: FakeTime) -> None:
    log: list[str] = []
    cells = [cell(log, "s", fake, 1), cell(log, "l", fake, 60)]
    results = interleaved(cells, Rounds(12, 0, at_least=3, seconds=300), CPU)
    assert [each.rounds for each in results] == [12, 3]
    results = interleaved(cells, Rounds(12, 0, at_least=3, seconds=1500), CPU)
    assert [each.rounds for each in results] == [12, 12]


# ------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"),
            "out of memory: 2.00 GiB more were asked for",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
            "out of memory: 8 bytes more were asked for",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "out of memory"),
        (RuntimeError("No available kernel. Aborting execution."), "not available: No available kernel"),
        (
            RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: No execution plans support the graph."),
            "not available: cuDNN Frontend error: [cudnn_frontend] Error: No execution plans support the graph",
        ),
        (RefusedError("no flash-attn, here"), "not available: no flash-attn; here"),
    ],
)
def test_a_failure_is_the_result_of_its_cell_alone(error: RuntimeError, sentence: str) -> None:
    def fails(clock: Clock) -> None:
        clock.start()
        clock.mark("before")
        raise error

    log: list[str] = []
    failed, fine = interleaved([fails, cell(log, "fine")], Rounds(2, 1), CPU)
    assert (failed.error, failed.rounds) == (sentence, 0)
    assert (fine.error, fine.rounds) == ("", 2)


def test_a_mistake_in_the_code_is_no_result() -> None:
    def broken(clock: Clock) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        interleaved([broken], Rounds(1, 0), CPU)


def test_memory_that_is_not_there_is_recorded_and_the_run_goes_on() -> None:
    log: list[str] = []
    results = interleaved([lambda clock: torch.empty(2**60), cell(log, "fine")], Rounds(1, 0), CPU)
    assert results[0].error.startswith("out of memory")
    assert results[1].rounds == 1


# --------------------------------------------------------------------------------------------------- memory


def test_the_allocators_peak_is_that_of_what_lives_together() -> None:
    clock = AllocationClock()
    clock.start()
    kept = torch.ones(1000)
    clock.mark("one")
    first = torch.ones(5000)
    del first
    second = torch.ones(3000)
    clock.mark("two")
    del kept, second
    third = torch.ones(10)
    clock.mark("three")
    clock.stop()
    assert clock.peaks() == {"one": 4000, "two": 4000 + 20000, "three": 4000 + 12000}
    assert len(third) == 10
