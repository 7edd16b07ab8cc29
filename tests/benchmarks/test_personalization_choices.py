"""Other choices for given pictures: each is a setting that exists, and the patched keys have the scene's statistics."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import personalization_choices
from benchmarks.personalization import CHANGES
from benchmarks.personalization_choices import CHOICES, difference, main, matched_keys, table
from consistory_ray.consistory.method.conditioning import Rows
from consistory_ray.consistory.method.exchange import SceneExchange
from consistory_ray.evaluation.consistency import SubjectScores
from consistory_ray.evaluation.likeness import LikenessScores
from consistory_ray.settings import MethodSettings


def test_every_choice_is_another_one() -> None:
    base = MethodSettings().replace(**CHANGES)
    made = [(base.replace(**c.settings), c.variant, c.pictures, c.true_masks, c.adain) for c in CHOICES.values()]
    assert len({repr(one) for one in made}) == len(CHOICES)


@pytest.mark.parametrize("tokens", ["all", "subject"])
def test_cached_keys_get_the_statistics_of_the_scenes_own(tokens: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    seen: list[torch.Tensor] = []

    def attend(query: Any, key: torch.Tensor, value: torch.Tensor, heads: int, ragged: bool) -> torch.Tensor:
        seen.append(key)
        return value

    monkeypatch.setattr(personalization_choices, "attend_tokens", attend)
    own, cached = 3 * torch.randn(4, 9, 8) + 1, torch.randn(1, 2, 20, 8) - 2
    exchange: Any = SceneExchange(Rows(2, 2), {"fine": cached})  # type: ignore[dict-item]
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, :4] = True
    exchange.masks = {"fine": mask}
    attn: Any = SimpleNamespace(to_k=lambda x: x, to_v=lambda x: x, heads=1)
    layer: Any = SimpleNamespace(level="fine", shared_slot=0)
    before = SceneExchange.sharing
    with matched_keys(tokens):
        exchange.sharing(layer)(attn, own, own, own, own)
    assert SceneExchange.sharing is before
    theirs, reference = seen[0][:, 9:], own if tokens == "all" else own[:, :4]
    assert torch.equal(seen[0][:, :9], own)
    assert torch.allclose(theirs.mean(1), reference.mean(1), atol=1e-4)
    assert torch.allclose(theirs.std(1, correction=0), reference.std(1, correction=0), atol=1e-3)


def test_differences_are_paired() -> None:
    one = LikenessScores(0.5, 0.4, 30.0, {"body": 0.2}, 0.9, SubjectScores(0.4, 30.0, 0.5, 1.0, 0.9, 0.1))
    better = LikenessScores(0.6, 0.4, 30.0, {"body": 0.2}, 0.9, one.scenes)
    found = difference([better, better], [one, one])
    assert found["difference"] == pytest.approx(0.1) and found["better"] == 2
    assert found["difference_interval"] == pytest.approx([0.1, 0.1])
    assert "| +0.100 [+0.100, +0.100] | 2 of 2 |" in table({"other": found}, 2)


@pytest.mark.slow
def test_a_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    choices = ["AdaIN on keys, subject's tokens", "one picture"]
    words = ["--subjects", "1", "--scenes", "2", "--steps", "2", "--threads", "1", "--device", "cpu"]
    words += ["--out", str(tmp_path), "--choices", *choices, "--choices-named", "true masks", "--wordings", "nothing"]
    monkeypatch.setattr(sys, "argv", ["personalization_choices.py", *words])
    main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    plain, named, wordings = (
        found for found in told.values() if isinstance(found, dict) and "num_inference_steps" not in found
    )
    assert list(plain) == ["vanilla", "as it is", *choices] and list(named)[2:] == ["true masks"]
    assert len({plain[name]["likeness"] for name in plain}) == 4, "a choice changes nothing"
    assert wordings["nothing"]["likeness"] == plain["as it is"]["likeness"]
    assert wordings["vanilla, nothing"]["likeness"] == plain["vanilla"]["likeness"]
    written = (tmp_path / "personalization_choices.md").read_text()
    assert all(f"| {name} |" in written for name in (*choices, "true masks", "nothing"))
