"""The run record: written whole, read back, tolerant of newer fields."""

from __future__ import annotations

import json

import pytest

from consistory_ray.errors import StorageError
from consistory_ray.output.run_record import RunRecord, installed_versions, read_run_record, write_run_record
from consistory_ray.output.storage import OutputStore

JOB = {"name": "quickstart", "subjects": [{"id": "été"}]}
RECORD = RunRecord("quickstart", "miniature", JOB, totals={"assets": 24})
NO_RECORDS = [b"", b"{", b"[]", b"{}", b"\xff", b'{"name": "x", "model": "m", "job": {}, "state": "?"}']


def test_write_update_and_read(store: OutputStore) -> None:
    assert read_run_record(store) is None
    write_run_record(store, RECORD)
    assert read_run_record(store) == RECORD
    over = RECORD.update(state="complete", totals={"assets": 24, "rendered": 24}, model_fingerprint="abc")
    write_run_record(store, over)
    again = read_run_record(store)
    assert again == over
    assert again is not None
    assert again.finished_at is not None
    assert RECORD.finished_at is None
    assert json.loads(store.read("run.json"))["job"]["subjects"] == [{"id": "été"}]


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(ValueError, match="state must be one of running, complete"):
        RECORD.update(state="done")


def test_newer_fields_are_left_out(local: OutputStore) -> None:
    write_run_record(local, RECORD)
    values = json.loads(local.read("run.json")) | {"from_the_future": 1, "version": 2}
    local.write_atomic("run.json", json.dumps(values).encode())
    read = read_run_record(local)
    assert read is not None
    assert (read.name, read.version) == ("quickstart", 2)


@pytest.mark.parametrize("text", NO_RECORDS)
def test_what_is_no_record_is_named(local: OutputStore, text: bytes) -> None:
    local.write_atomic("run.json", text)
    with pytest.raises(StorageError, match=r"run\.json is not a run record"):
        read_run_record(local)


def test_versions_name_python_and_packages() -> None:
    versions = installed_versions()
    assert {"python", "pyarrow", "pillow"} <= set(versions)
