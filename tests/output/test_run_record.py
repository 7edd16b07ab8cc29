"""The run record: written whole, read back, tolerant of newer fields."""

from __future__ import annotations

import json

import pytest

from consistory_ray.output.run_record import (
    RunRecord,
    installed_versions,
    look_for_record,
    read_run_record,
    write_run_record,
)
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
def test_what_is_no_record_is_told_and_not_taken_into_account(
    local: OutputStore, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    local.write_atomic("run.json", text)
    assert look_for_record(local).problem
    assert read_run_record(local) is None
    assert "run.json is damaged" in caplog.text


WRONG = {
    "name": [1, None, ["x"], "x" * 200_000], "model": [3.5, {}], "job": [None, [], "x", 7],
    "state": [None, 1, "done"], "totals": [[1], {"done": "many"}, {"done": float("1e999")}, {"done": None}],
    "versions": [{"torch": 2}, []], "started_at": [1, "today", "0001-01-01T00:00:00", "2026-01-01T00:00:00"],
    "updated_at": [None, "9999-12-31T23:59:59+00:00"], "finished_at": [0, ""], "error": [1, ["x"]], "version": ["1"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_values_of_other_types_are_told(local: OutputStore, key: str, value: object) -> None:
    write_run_record(local, RECORD)
    changed = json.loads(local.read("run.json")) | {key: value}
    local.write_atomic("run.json", json.dumps(changed).encode())
    seen = look_for_record(local)
    assert (seen.record is None and key in seen.problem) or "NaN" in seen.problem or "Infinity" in seen.problem


def test_no_password_is_written(local: OutputStore) -> None:
    stored = {"url": "https://ann:hunter2@host/a.safetensors?sig=s3cr3t&x=1", "sha256": "0" * 64}
    words = "a poster that says token: swordfish"
    job = {"name": "x", "model": "https://bob:pass@hub/m", "subjects": [{"from": stored, "scenes": [words]}]}
    write_run_record(local, RunRecord("x", job["model"], job, error="GET https://ann:hunter2@host failed"))  # type: ignore[arg-type]
    text = local.read("run.json").decode()
    assert not any(secret in text for secret in ("hunter2", "s3cr3t", "bob:pass"))
    read = read_run_record(local)
    assert read is not None and read.job["subjects"][0]["scenes"] == [words], "what is drawn is no secret"


def test_versions_name_python_and_packages() -> None:
    versions = installed_versions()
    assert {"python", "pyarrow", "pillow"} <= set(versions)
