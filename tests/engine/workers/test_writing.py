"""The threads that write pictures: as many as keep up with the device, and nothing is lost when more come."""

from __future__ import annotations

import threading

import pytest

from consistory_ray.engine.workers.writing import LEAST_WRITERS, MOST_WRITERS, Writers, writers_needed


@pytest.mark.parametrize(
    ("encoding", "writing", "device", "cores", "needed"),
    [
        (0.8, 0.1, 8.0, 8, LEAST_WRITERS),  # SDXL: a thread has more than enough time
        (9.0, 0.5, 1.5, 8, 7),  # six to encode, one to write
        (9.0, 6.0, 1.5, 2, 6),  # more encoding threads than cores would only take turns
        (0.1, 12.0, 1.0, 2, 13),  # far storage: waiting takes no core
        (1.0, 99.0, 0.5, 8, MOST_WRITERS),
        (1.0, 1.0, 0.0, 8, MOST_WRITERS),
    ],
)
def test_as_many_threads_as_the_device_needs(
    encoding: float, writing: float, device: float, cores: int, needed: int
) -> None:
    assert writers_needed(encoding, writing, device, cores) == needed


def test_more_come_when_they_are_needed_and_stay() -> None:
    writers = Writers()
    writers.measured(0.1, 0.1, 8.0)
    assert writers.count == LEAST_WRITERS
    writers.measured(0.0, 11.5, 1.0)
    assert writers.count == 12
    writers.measured(0.1, 0.1, 8.0)
    assert writers.count == 12
    meeting = threading.Barrier(12, timeout=200)

    def write(one: int, other: int) -> int:
        meeting.wait()  # until all twelve are here at once
        return one + other

    assert writers.map(write, range(12), range(12)) == [*range(0, 24, 2)]


def test_what_is_being_written_is_finished_when_more_come() -> None:
    writers, held, out = Writers(), threading.Event(), list[str]()

    def write(name: str, _: int) -> str:
        assert held.wait(200)
        return name

    names = [str(number) for number in range(2 * LEAST_WRITERS)]  # half of them wait for a thread
    caller = threading.Thread(target=lambda: out.extend(writers.map(write, names, range(len(names)))))
    caller.start()
    while not writers._threads._work_queue.qsize():
        pass
    writers.measured(0.0, 9.0, 1.0)
    held.set()
    caller.join(30)
    assert out == names


def test_the_first_error_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        Writers().map(lambda one, other: one / other, [1.0, 2.0], [1.0, 0.0])
