"""What exceptions mean, and how they travel."""

from __future__ import annotations

import errno
import importlib
import pickle

import pytest

from consistory_ray.engine.faults import TABLE, Caps, Failure, Fault, classify
from consistory_ray.errors import (
    AssetError,
    CacheMismatchError,
    CheckpointError,
    DiskFullError,
    InputError,
    PictureError,
    PromptError,
    StorageError,
)


@pytest.mark.parametrize("name", TABLE)
def test_every_name_in_the_table_is_an_exception(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    error = getattr(importlib.import_module(module), attribute)
    assert issubclass(error, BaseException)
    assert f"{error.__module__}.{error.__qualname__}" == name


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (RuntimeError("?"), Fault.ERROR),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Fault.BROKEN),
        (MemoryError(), Fault.OUT_OF_MEMORY),
        (AssetError("not finite"), Fault.BAD_ASSET),
        (PictureError("picture 1: not finite", {1: "not finite"}, "the rest"), Fault.BAD_ASSET),
        (PromptError("no cat in it"), Fault.BAD_ASSET),
        (CacheMismatchError("other model"), Fault.BAD_ASSET),
        (CheckpointError("no such model"), Fault.BAD_MODEL),
        (StorageError("503"), Fault.STORAGE),
        (OSError(errno.ENOSPC, "no space on the worker's own disk"), Fault.ERROR),
        (DiskFullError("no space"), Fault.DISK_FULL),
    ],
)
def test_classification(error: Exception, fault: Fault) -> None:
    assert classify(error) is fault


def test_the_device_running_out_of_memory() -> None:
    torch = pytest.importorskip("torch")
    assert classify(torch.OutOfMemoryError("CUDA out of memory")) is Fault.OUT_OF_MEMORY
    assert classify(torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700)) is Fault.BROKEN


def test_a_storage_error_from_a_full_disk_is_a_full_disk() -> None:
    error = StorageError("could not write")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert classify(error) is Fault.DISK_FULL


def test_ray_errors() -> None:
    from ray import exceptions

    assert classify(exceptions.ActorDiedError()) is Fault.WORKER_DIED
    assert classify(exceptions.NodeDiedError("gone")) is Fault.NODE_DIED
    assert classify(exceptions.GetTimeoutError()) is Fault.NODE_DIED
    wrapped = exceptions.RayTaskError("scenes", "traceback", MemoryError("too much"))
    assert Failure.of(wrapped).fault is Fault.OUT_OF_MEMORY
    assert Failure.of(wrapped.as_instanceof_cause()).kind == "MemoryError"


def test_what_failed_of_a_call_can_be_sent_and_the_rest_stays_behind() -> None:
    error = PictureError.of({1: "not finite", 3: "black"}, 4, result=object())
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "picture 1: not finite; picture 3: black"
    assert again.failures == {1: "not finite", 3: "black"} and again.result is None
    assert str(PictureError.of({0: "black", 1: "black"}, 2)) == "black"


def test_a_failure_can_be_sent_whatever_the_exception_holds() -> None:
    class Unpicklable(Exception):
        def __reduce__(self) -> str:
            raise TypeError("no")

    try:
        raise Unpicklable("some message")
    except Unpicklable as error:
        failure = pickle.loads(pickle.dumps(Failure.of(error)))
    assert str(failure) == "Unpicklable: some message"
    assert "test_faults.py" in failure.traceback


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"crashes": 5}, "worker_deaths"),  # the only worker would be given up before the asset that kills it
        ({"worker_deaths": 2}, "worker_deaths"),
        ({"attempts": 7}, "worker_errors"),  # one bad asset would make a worker look broken
        ({"failures_in_a_row": 9}, "failures_in_a_row"),  # the run would stop before its one bad subject is given up
        ({"failing_subjects": 101}, "failures_in_a_row"),
        ({"saves": 0}, "saves"),
    ],
)
def test_caps_that_work_against_each_other_are_refused(given: dict[str, int], field: str) -> None:
    with pytest.raises(InputError) as raised:
        Caps(**given)
    (problem,) = raised.value.problems
    assert problem.path == f"caps.{field}" and problem.fix
    assert Caps(crashes=4, attempts=6, failures_in_a_row=10), "the next ones can be used"
