"""Hints in a plan: their content decides ids, never where they lie; poses cross with scenes; nets are checked."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from consistory_ray.engine.running import load
from consistory_ray.errors import CheckpointError, InputError
from consistory_ray.jobs.allowlist import VARIABLE
from consistory_ray.jobs.job import parse_job
from consistory_ray.plan.advice import job_notes
from consistory_ray.plan.forecast import forecast
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.settings import controlnet_revision, model_revision


def hint(path: Path, grey: int = 255) -> str:
    buffer = io.BytesIO()
    Image.new("L", (16, 16), grey).save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return str(path)


def net(folder: Path, **config: Any) -> str:
    """A ControlNet's folder, for the bundled model unless its configuration says otherwise."""
    from consistory_ray.plan.model_files import model_config

    unet = dict(model_config("miniature", "unet") or {})
    kept = (
        *("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type"),
        *("addition_time_embed_dim", "projection_class_embeddings_input_dim"),
    )
    values = {name: unet[name] for name in kept if name in unet}
    values |= {"_class_name": "ControlNetModel", "conditioning_embedding_out_channels": [16, 32, 96], **config}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    return str(folder)


def data(*scenes: Any, nets: Any = ("acme/net",), model: str = "acme/xl", **changes: Any) -> dict[str, Any]:
    one = {"id": "moss", "concept": "dragon", "subject": "a dragon", "anchors": ["in the forest", "on the beach"]}
    top = {"model": model, "controlnets": list(nets)} | ({"guess_mode": True} if changes.pop("guess", False) else {})
    return {**top, "subjects": [{**one, "scenes": list(scenes), **changes}]}


def plan(*scenes: Any, **changes: Any) -> Plan:
    return make_plan(parse_job(data(*scenes, **changes)))


def ids(*scenes: Any, **changes: Any) -> list[str]:
    return [scene.asset_id for scene in plan(*scenes, **changes).subjects[0].scenes]


def test_a_hint_is_in_the_id_of_its_picture_and_nowhere_else(tmp_path: Path) -> None:
    white = {"prompt": "in space", "control": hint(tmp_path / "white.png")}
    free, led = plan("in space", nets=[]).subjects[0], plan(white).subjects[0]
    assert led.subject_key == free.subject_key
    assert led.anchors == free.anchors
    assert (led.scenes[0].seed, led.scenes[0].path) == (free.scenes[0].seed, free.scenes[0].path)
    assert led.scenes[0].asset_id != free.scenes[0].asset_id
    assert ids("in space") == ids("in space", nets=[]) == [free.scenes[0].asset_id], "a net alone changes nothing"
    assert ids("in space", guess=True) == ids("in space")


def test_every_part_of_a_control_decides_and_its_address_does_not(tmp_path: Path) -> None:
    image = hint(tmp_path / "a" / "one.png")

    def led(guess: bool = False, nets: Any = ("acme/net", "acme/other"), **control: Any) -> str:
        (found,) = ids({"prompt": "in space", "control": {"image": image, **control}}, nets=nets, guess=guess)
        return found

    first = led()
    assert led(image=hint(tmp_path / "b" / "two.png")) == first, "the same bytes under another name"
    assert led(scale=1, start=0, end=1, preprocess="none", net="acme/net") == first
    assert led(nets=["acme/other", "acme/net"], net=1) == first, "which net, not its place"
    assert led(nets=[{"model": "acme/net", "name": "mine"}], net="mine") == first
    others = [
        led(image=hint(tmp_path / "c.png", 9)),
        led(scale=0.5),
        led(start=0.1),
        led(end=0.9),
        led(preprocess="canny"),
        led(net=1),
        led(mode=1),
        led(guess=True),
    ]
    assert len({first, *others}) == len(others) + 1


def test_a_hint_of_an_anchor_makes_another_individual(tmp_path: Path) -> None:
    image = hint(tmp_path / "one.png")
    free = plan("in space").subjects[0]
    led = plan("in space", anchors=[{"prompt": "in the forest", "control": image}, "on the beach"]).subjects[0]
    assert [asset.seed for asset in led.assets()] == [asset.seed for asset in free.assets()]
    assert led.subject_key != free.subject_key
    assert not {asset.asset_id for asset in led.assets()} & {asset.asset_id for asset in free.assets()}
    assert [len(anchor.control) for anchor in led.anchors] == [1, 0]


def test_a_net_on_this_machine_is_known_by_its_weights(tmp_path: Path) -> None:
    first, moved = net(tmp_path / "net"), net(tmp_path / "moved")
    scene = {"prompt": "in space", "control": hint(tmp_path / "one.png")}
    before = ids(scene, nets=[first])
    assert ids(scene, nets=[moved]) == before
    (tmp_path / "net" / "diffusion_pytorch_model.safetensors").write_bytes(b"trained longer")
    assert ids(scene, nets=[first]) != before
    assert controlnet_revision("miniature") != model_revision("miniature")
    assert controlnet_revision("acme/net") is None


def test_every_scene_is_made_in_every_pose(tmp_path: Path) -> None:
    poses, image = tmp_path / "poses", hint(tmp_path / "one.png")
    for number, name in enumerate(("sitting", "asleep")):
        hint(poses / f"{name}.png", number)
    scenes = ["in the snow", {"id": "night", "prompt": "at night", "count": 2, "seed": 3, "control": image}]
    made = plan(*scenes, poses=str(poses))
    subject = made.subjects[0]
    assert [scene.scene_id for scene in subject.scenes] == [
        *("in-the-snow.asleep", "in-the-snow.sitting"),
        *("night-0.asleep", "night-0.sitting", "night-1.asleep", "night-1.sitting"),
    ]
    assert made.scene_count == 6
    assert subject.scenes[0].path == "images/moss/in-the-snow.asleep.png"
    assert [scene.seed for scene in subject.scenes[2:]] == [3, 3, 4, 4]
    assert subject.scenes[0].seed == plan("in the snow").subjects[0].scenes[0].seed, "poses move no seed"
    assert [len(scene.control) for scene in subject.scenes] == [1, 1, 2, 2, 2, 2]
    assert len({asset.asset_id for asset in made.assets()}) == 8
    assert sorted(file.url for file in made.inputs()) == sorted([image, *map(str, poses.iterdir())])
    hint(poses / "c.png", 7)
    more = plan(*scenes, poses=str(poses)).subjects[0]
    assert {scene.asset_id for scene in subject.scenes} < {scene.asset_id for scene in more.scenes}


def test_pictures_that_the_index_and_the_file_tell_of(tmp_path: Path) -> None:
    control = {"image": hint(tmp_path / "one.png"), "scale": 0.5, "mode": "depth"}
    (asset,) = plan({"prompt": "in space", "control": control}).subjects[0].scenes
    (told,) = [one.to_dict() for one in asset.control]
    assert (told["scale"], told["net"], told["mode"], len(told["sha256"])) == (0.5, "acme/net", "depth", 64)
    assert str(tmp_path) not in json.dumps(told)


def refusal(job: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(InputError) as caught:
        load(job)
    problem = caught.value.problems[0]
    return problem.path, problem.fix


def test_nets_that_cannot_be_used_are_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(*nets: Any, **control: Any) -> tuple[str, str]:
        scene = {"prompt": "in space", "control": {"image": hint(tmp_path / "one.png"), **control}}
        return refusal(data(scene, nets=nets, model="miniature"))

    fine, union = net(tmp_path / "net"), net(tmp_path / "union", _class_name="ControlNetUnionModel", num_control_type=6)
    scene = {"prompt": "in space", "control": hint(tmp_path / "one.png")}
    load(data(scene, nets=[fine], model="miniature"))
    assert "no such file or folder here" in bad("./nowhere")[1]
    path, fix = bad(fine, net(tmp_path / "xl", block_out_channels=[320, 640, 1280]))
    assert path.startswith("controlnets[1]")
    assert "as in the model" in fix
    assert bad(fine, mode="depth")[0] == "subjects[0].scenes[0].control[0].mode"
    assert "one kind of hint" in bad(fine, mode="depth")[1]
    assert "write one of openpose, depth" in bad(union)[1]
    assert "write one of openpose, depth" in bad(union, mode="colours")[1]
    assert "write one of openpose, depth" in bad(union, mode=6)[1]
    load(data({**scene, "control": {"image": scene["control"], "mode": "canny"}}, nets=[union], model="miniature"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(data(scene, nets=[str(tmp_path / "empty")], model="miniature"))
    monkeypatch.setenv(VARIABLE, f"hf://acme,{tmp_path}")
    assert bad("other/net")[0] == "controlnets[0]"
    assert VARIABLE in bad("other/net")[1]
    load(data(scene, nets=[fine, "acme/net"], model="miniature"))


def test_what_is_probably_not_meant_is_told(tmp_path: Path) -> None:
    image = hint(tmp_path / "one.png")

    def kinds(nets: Any = ("acme/net",), **control: Any) -> list[str]:
        scene = {"prompt": "in space", "control": {"image": image, **control}}
        job = parse_job({**data(scene, nets=nets), "settings": {"num_inference_steps": 20}})
        return [warning.kind for warning in job_notes(job, make_plan(job)).warnings]

    assert kinds() == []
    assert kinds(scale=0) == ["useless-control"]
    assert kinds(start=0.51, end=0.54) == ["useless-control"]
    assert kinds(start=0.5, end=0.55) == [], "one step of twenty"
    assert kinds(nets=["acme/net", "acme/other"]) == ["unused-controlnet"]


def test_led_pictures_are_forecast_to_take_longer(tmp_path: Path) -> None:
    def seconds(*scenes: Any, **changes: Any) -> float:
        return forecast(plan(*scenes, model="miniature", **changes), "out", (), {}).seconds

    free = seconds("in space", "in the snow")
    led = seconds("in space", {"prompt": "in the snow", "control": hint(tmp_path / "one.png")}, nets=["miniature"])
    assert free < led < 1.5 * free
