"""What the server answers: filters, windows, decisions that are on storage, pictures by id, and who is let in."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from starlette.testclient import TestClient

from consistory_ray.errors import StorageError
from consistory_ray.output.decisions import Decision, read_decisions, standing, write_decisions
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.review import desk as desk_module

from .conftest import TOKEN, asset_id

Review = Callable[..., Any]
_keys = iter(range(10**9))


def find(client: TestClient, **query: Any) -> list[str]:
    """The names of the scenes that a filter finds."""
    view = client.get("/api/view", params=query).json()
    items = client.get("/api/window", params={"view": view["view"], "start": 0, "count": 100}).json()["items"]
    assert len(items) == view["total"]
    return [f"{one['subject']}/{one['scene']}" for one in items]


def wish(action: str, subject: int, scene: int, looked_at: int = 1, **more: Any) -> dict[str, Any]:
    """A decision as the page sends it."""
    ids = {"picture_id": asset_id(subject, scene), "asset_id": asset_id(subject, scene, looked_at)}
    return {"key": f"key-{next(_keys)}", "action": action, **ids, **more}


def decide(client: TestClient, *wishes: dict[str, Any]) -> Any:
    return client.post("/api/decisions", json={"decisions": wishes})


def item(client: TestClient, subject: int, scene: int) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/api/scene/{asset_id(subject, scene)}").json()
    return found


def test_filters(output: OutputStore, review: Review) -> None:
    with review(output) as client:
        assert len(find(client)) == 12 and find(client)[0] == "cat-0/scene-0"
        assert find(client, subject="cat-1") == [f"cat-1/scene-{n}" for n in range(4)]
        assert find(client, words="PLACE cat-2") == [f"cat-2/scene-{n}" for n in range(4)], "of all texts"
        assert find(client, scene="ne-3", subject="cat-0") == ["cat-0/scene-3"]
        assert find(client, only="failed") == find(client, fault="asset") == ["cat-2/scene-3"]
        assert find(client, only="takes") == [f"cat-{n}/scene-0" for n in range(3)]
        assert find(client, low=0.75) == ["cat-0/scene-0", "cat-1/scene-0"], "the best take's score"
        assert find(client, low=0.15, high=0.25) == [f"cat-{n}/scene-2" for n in range(3)]
        assert find(client, sort="worst")[0] == "cat-0/scene-1" and find(client, sort="worst")[-1] == "cat-2/scene-3"
        assert find(client, sort="best")[:2] == ["cat-0/scene-0", "cat-1/scene-0"]
        assert find(client, words="zebra") == []
        facets = client.get("/api/facets").json()
        assert facets["subjects"][0] == {"name": "cat-0", "all": 4, "undecided": 4}
        assert facets["faults"] == [{"name": "asset", "all": 1}] and facets["scores"] == [0.1, 0.9]
        assert [one["name"] for one in client.get("/api/facets?like=T-2").json()["subjects"]] == ["cat-2"]
        bad = client.get("/api/view", params={"only": "nonsense", "low": "x", "colour": "red"})
        assert bad.status_code == 400 and [one["path"] for one in bad.json()["problems"]] == ["only", "low", "colour"]


def test_the_plan_decides_what_is_shown_and_in_which_order(output: OutputStore, review: Review) -> None:
    planned = [asset_id(1, 2), asset_id(0, 0), "not rendered yet"]
    with review(output, planned=lambda: planned) as client:
        assert find(client) == ["cat-1/scene-2", "cat-0/scene-0"]


def test_windows(output: OutputStore, review: Review) -> None:
    with review(output) as client:
        view = client.get("/api/view").json()["view"]
        window = client.get("/api/window", params={"view": view, "start": 10, "count": 50}).json()
        assert [one["scene"] for one in window["items"]] == ["scene-2", "scene-3"]
        assert client.get("/api/window", params={"view": view, "start": 99, "count": 5}).json()["items"] == []
        assert client.get("/api/window", params={"view": "made up", "start": 0, "count": 5}).status_code == 410
        for start, count in (("-1", "5"), ("x", "5"), ("0", "301"), ("0", "9" * 30)):
            assert client.get("/api/window", params={"view": view, "start": start, "count": count}).status_code == 400
        place = client.get("/api/position", params={"view": view, "picture": asset_id(2, 1)}).json()
        assert place == {"position": 9}


def test_decisions_are_on_storage_when_they_are_answered(output: OutputStore, review: Review) -> None:
    before = {file.path: file.size for file in output.list_files("index")}
    with review(output) as client:
        answer = decide(client, wish("pick", 0, 0, 3), wish("reject", 0, 1), wish("note", 0, 2, note="ears", who="bob"))
        assert answer.status_code == 200
        found, broken = read_decisions(output)
        assert {one.decision_id for one in found} == {one["decision_id"] for one in answer.json()["results"]}
        assert {(one.action, one.who) for one in found} == {("pick", "ada"), ("reject", "ada"), ("note", "bob")}
        assert not broken and len(output.list_files("decisions")) == 1, "decisions of one moment are one part"
        states = {one["scene"]: one["state"] for one in answer.json()["items"]}
        assert states == {"scene-0": "picked", "scene-1": "rejected", "scene-2": "undecided"}
        assert answer.json()["counts"]["picked"] == 1 and answer.json()["counts"]["notes"] == 1
        assert find(client, only="rejected") == ["cat-0/scene-1"] and find(client, only="notes") == ["cat-0/scene-2"]
        assert item(client, 0, 0)["asset_id"] == asset_id(0, 0, 3), "the picked take is the picture"
    assert {file.path: file.size for file in output.list_files("index")} == before
    with review(output) as client:
        assert item(client, 0, 0)["state"] == "picked", "somebody else sees it"


def test_a_view_stays_as_it_is_while_somebody_works_on_it(output: OutputStore, review: Review) -> None:
    with review(output) as client:
        view = client.get("/api/view", params={"only": "undecided"}).json()
        decide(client, wish("pick", 0, 0))
        window = client.get("/api/window", params={"view": view["view"], "start": 0, "count": 2}).json()
        assert [one["state"] for one in window["items"]] == ["picked", "undecided"]
        assert len(find(client, only="undecided")) == view["total"] - 1


def test_rejecting_takes_one_after_the_other(output: OutputStore, review: Review) -> None:
    with review(output) as client:
        shown = []
        for _ in range(3):
            take = item(client, 1, 0)["take"]
            shown.append(take)
            decide(client, wish("reject", 1, 0, take))
        assert shown == [2, 3, 1], "the best of those that are left"
        assert item(client, 1, 0)["state"] == "rejected"
        undone = item(client, 1, 0)["last"]["decision_id"]
        decide(client, wish("undo", 1, 0, undoes=undone))
        assert item(client, 1, 0)["state"] == "undecided" and item(client, 1, 0)["take"] == 1


def test_another_take(output: OutputStore, review: Review, row: Callable[..., Any]) -> None:
    with review(output) as client:
        assert item(client, 0, 1)["next_take"] == 2 and item(client, 0, 0)["next_take"] == 4
        decide(client, wish("reroll", 0, 1, take=2), wish("reroll", 0, 1, take=2, who="bob"))
        asked = item(client, 0, 1)
        assert asked["state"] == "reroll" and asked["asked"] == [2] and asked["next_take"] == 3
        refused = decide(client, wish("reroll", 0, 1, take=9))
        assert refused.status_code == 400 and refused.json()["problems"][0]["fix"] == "ask for take 3"
    with IndexWriter(output) as writer:
        writer.add(row(output, 0, 1, 2))
    with review(output) as client:
        assert item(client, 0, 1)["state"] == "undecided" and item(client, 0, 1)["takes"] == 2
        assert "cat-0/scene-1" in find(client, only="takes")


def test_others_decide_at_the_same_time(output: OutputStore, review: Review, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "LOOK_SECONDS", 0)
    with review(output) as ada, review(output) as bob:
        since = bob.get("/api/session").json()["version"]
        clients = [ada, bob] * 10
        threads = [
            threading.Thread(target=decide, args=(client, wish("note", number % 3, 1, note=f"note {number}")))
            for number, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        decide(ada, wish("pick", 2, 2))
        assert len(read_decisions(output)[0]) == 21
        changed = bob.get("/api/changes", params={"since": since}).json()
        states = {(one["subject"], one["scene"]): one["state"] for one in changed["items"]}
        assert states["cat-2", "scene-2"] == "picked" and not changed["reset"] and changed["counts"]["picked"] == 1
        assert bob.get("/api/changes", params={"since": changed["version"]}).json()["items"] == []
        assert bob.get("/api/changes", params={"since": 10**9}).json()["reset"]


def test_the_last_one_counts_even_where_a_clock_is_ahead(output: OutputStore, review: Review) -> None:
    ahead = datetime.now(timezone.utc) + timedelta(hours=3)
    picture = asset_id(0, 1)
    write_decisions(output, [Decision(picture, picture, "cat-0", "scene-1", "pick", "bob", at=ahead)])
    with review(output) as client:
        assert item(client, 0, 1)["state"] == "picked"
        decide(client, wish("reject", 0, 1))
        assert item(client, 0, 1)["state"] == "rejected"
    assert standing(read_decisions(output)[0])[picture].rejected == {picture}


def test_pictures_that_come_while_somebody_looks(
    output: OutputStore, review: Review, row: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "LOOK_SECONDS", 0)
    monkeypatch.setattr(desk_module, "INDEX_SECONDS", 0)
    with review(output) as client:
        since = client.get("/api/session").json()["version"]
        view = client.get("/api/view").json()
        with IndexWriter(output) as writer:
            writer.add(row(output, 0, 4))
            writer.add(row(output, 2, 3))
        changes = client.get("/api/changes", params={"since": since}).json()
        assert changes["reset"] and changes["counts"]["all"] == 13 and changes["counts"]["failed"] == 0
        items = client.get("/api/window", params={"view": view["view"], "start": 0, "count": 100}).json()["items"]
        assert len(items) == 12 and items[-1]["state"] == "undecided", "the same list, as it is now"
        assert "cat-0/scene-4" in find(client)


def test_what_cannot_be_written_is_told_and_can_be_sent_again(
    output: OutputStore, review: Review, monkeypatch: pytest.MonkeyPatch
) -> None:
    with review(output) as client:
        again = wish("note", 0, 0, note="once")

        def fail(*_: Any) -> None:
            raise StorageError("could not write: the disk is on fire")

        with monkeypatch.context() as failing:
            failing.setattr(desk_module, "write_decisions", fail)
            answer = decide(client, again)
            assert answer.status_code == 503 and "on fire" in answer.json()["error"]
            assert item(client, 0, 0)["notes"] == [], "what is not saved is not shown as if it were"
        first, second = decide(client, again), decide(client, again)
        assert first.json()["results"] == second.json()["results"]
    assert [one.note for one in read_decisions(output)[0]] == ["once"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"decisions": []}, "decisions"),
        ({"decisions": [wish("burn", 0, 0)]}, "action"),
        ({"decisions": [wish("pick", 7, 7)]}, "no scene"),
        ({"decisions": [wish("pick", 0, 0) | {"asset_id": asset_id(1, 0)}]}, "no take of this scene"),
        ({"decisions": [wish("pick", 2, 3)]}, "no picture"),
        ({"decisions": [wish("undo", 0, 0, undoes="x")]}, "no undo"),
        ({"decisions": [wish("note", 0, 0)]}, "note"),
        ({"decisions": [wish("note", 0, 0, note="\ud800")]}, "unicode"),
        ({"decisions": [wish("pick", 0, 0, who="a\nb")]}, "who"),
        ({"decisions": [wish("pick", 0, 0)], "more": 1}, "more"),
        ([[[[[[[[[[1]]]]]]]]]], "nested|deep|level"),
    ],
)
def test_what_is_no_decision_is_refused_whole(output: OutputStore, review: Review, body: Any, told: str) -> None:
    with review(output) as client:
        if isinstance(body, dict) and body["decisions"]:
            body = body | {"decisions": [wish("pick", 0, 1), *body["decisions"]]}
        answer = client.post("/api/decisions", content=json.dumps(body))
        assert answer.status_code == 400 and any(one in answer.text for one in told.split("|")), answer.text
    assert read_decisions(output) == ([], {})


def test_a_broken_part_is_told(output: OutputStore, review: Review) -> None:
    output.write_atomic("decisions/part-00000000000000000000000000000000.parquet", b"cut off")
    with review(output) as client:
        assert "part-0000" in client.get("/api/session").json()["broken"][0]


def test_pictures_are_found_by_id_alone(output: OutputStore, review: Review, row: Callable[..., Any]) -> None:
    with IndexWriter(output) as writer:
        writer.add(row(output, 5, 0, side=600))
    with review(output) as client:
        whole = client.get(f"/picture/{asset_id(5, 0)}")
        assert whole.status_code == 200 and whole.headers["content-type"] == "image/png"
        assert whole.content == output.read("images/cat-5/scene-0.1.png")
        small = client.get(f"/preview/{asset_id(5, 0)}")
        assert small.headers["content-type"] == "image/webp" and len(output.list_files("gallery/thumbnails")) == 1
        output.delete("images/cat-5/scene-0.1.png")
        assert client.get(f"/preview/{asset_id(5, 0)}").content == small.content, "made once"
        assert client.get(f"/picture/{asset_id(5, 0)}").status_code == 502
        assert client.get(f"/preview/{asset_id(0, -1)}").status_code == 200, "anchors, too"
        output.write_atomic("secret.txt", b"secret")
        for path in (
            *("/picture/secret.txt", "/picture/..%2Fsecret.txt", "/preview/%2e%2e%2fsecret.txt", "/static/../app.py"),
            *("/static/..%2fapp.py", f"/picture/{asset_id(2, 3)}", "/picture/", "/static/%2fetc/passwd"),
        ):
            answer = client.get(path)
            assert answer.status_code == 404 and b"secret" not in answer.content, path


def test_previews_where_the_output_cannot_be_written(
    output: OutputStore, review: Review, row: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with IndexWriter(output) as writer:
        writer.add(row(output, 5, 0, side=600))

    def refuse(*_: Any) -> None:
        raise StorageError("read only")

    with review(output) as client:
        monkeypatch.setattr(OutputStore, "write_atomic", refuse)
        assert client.get(f"/preview/{asset_id(5, 0)}").status_code == 200
        assert not output.list_files("gallery")


def test_only_who_has_the_link_is_let_in(output: OutputStore, review: Review) -> None:
    paths = ("/", "/api/session", "/static/main.js", f"/picture/{asset_id(0, 0)}", "/nothing")
    with review(output, token="") as client:
        for path in paths:
            assert client.get(path).status_code == 403
            assert client.get(path, headers={"x-review-token": TOKEN[:-1]}).status_code == 403
            assert client.get(f"{path}?token={TOKEN}x").status_code == 403
        assert decide(client, wish("pick", 0, 0)).status_code == 403
        page = client.get(f"/?token={TOKEN}")
        assert page.status_code == 200
        cookie = page.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert client.get("/api/session").status_code == 200, "the browser keeps a cookie"
        assert "set-cookie" not in client.get("/api/session").headers
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert page.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost.evil"])
def test_another_sites_name_is_refused(output: OutputStore, review: Review, host: str) -> None:
    with review(output) as client:
        assert client.get("/api/session", headers={"host": host}).status_code == 403
        for fine in ("localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:9", "192.168.0.7"):
            assert client.get("/api/session", headers={"host": fine}).status_code == 200


def test_only_the_page_itself_decides(output: OutputStore, review: Review) -> None:
    with review(output) as client:
        body = {"decisions": [wish("pick", 0, 0)]}
        for origin in ("http://evil.example", "http://localhost:81", "null"):
            assert client.post("/api/decisions", json=body, headers={"origin": origin}).status_code == 403
        assert client.post("/api/decisions", json=body, headers={"origin": "http://localhost"}).status_code == 200
        assert client.get("/api/decisions").status_code == 405


def test_a_review_on_s3(s3_options: dict[str, Any], fill: Callable[..., Any], review: Review) -> None:
    store = fill(open_output("s3://reviews/out", **s3_options))
    with review(store) as client:
        assert len(find(client)) == 12
        assert decide(client, wish("pick", 0, 0, 2)).status_code == 200
        assert client.get(f"/preview/{asset_id(0, 0)}").status_code == 200
    assert [one.action for one in read_decisions(store)[0]] == ["pick"]


def test_an_empty_index(tmp_path: Any, review: Review) -> None:
    with review(open_output(tmp_path / "none")) as client:
        assert find(client) == [] and client.get("/api/session").json()["counts"]["all"] == 0
        assert client.get("/api/facets").json()["scores"] is None
