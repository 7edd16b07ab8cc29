"""Nearest sources, gates, and the order in which anchors are injected, against plain loops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from consistory_ray.consistory.method.correspondence import match, smooth, unit_features
from consistory_ray.consistory.method.injection import AnchorInjection, CachedInjection
from consistory_ray.consistory.method.layout import Grid, Layer
from consistory_ray.consistory.method.masks import otsu_threshold

LAYER = Layer("up_blocks.1.x.attn1", is_self=True, level="fine", shared_slot=0, injected_slot=1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(draw(*shape, seed=seed), dim=-1)


def masks_of(anchors: int, tokens: int, seed: int = 1) -> Tensor:
    return torch.rand(anchors, tokens, generator=torch.Generator().manual_seed(seed)) > 0.5


def test_smoothing_is_a_gaussian_with_zeros_outside() -> None:
    impulse = torch.zeros(1, 2, 5, 5)
    impulse[0, 0, 2, 2] = impulse[0, 1, 0, 0] = 1
    found = smooth(impulse)
    weights = torch.tensor([[2.718281828 ** (-(x * x + y * y) / 2) for x in (-1, 0, 1)] for y in (-1, 0, 1)])
    weights /= weights.sum()
    torch.testing.assert_close(found[0, 0, 1:4, 1:4], weights)
    torch.testing.assert_close(found[0, 1, :2, :2], weights[1:, 1:])
    assert found[0, 0].sum().item() == torch.tensor(1.0)


def test_features_are_resized_to_the_level_and_of_length_one() -> None:
    features = unit_features(draw(2, 8, 6, 4), Grid(3, 2))
    assert features.shape == (2, 6, 8)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2, 6))


def test_matches_against_a_plain_loop() -> None:
    targets, masks, sources = unit(2, 9, 4), masks_of(2, 9), unit(7, 4, seed=2)
    found = match(targets, masks, sources)
    for image in range(2):
        distances = [[1 - float(token @ source) for source in sources] for token in targets[image]]
        assert found.index[image].tolist() == [row.index(min(row)) for row in distances]
        best = torch.tensor([min(row) for row in distances])
        torch.testing.assert_close(found.distance[image], best)
        assert torch.equal(found.gate[image], masks[image] & (best < otsu_threshold(best)))
    assert found.gate.any()


def test_no_source_injects_nothing() -> None:
    found = match(unit(2, 9, 4), torch.ones(2, 9, dtype=torch.bool), torch.empty(0, 4))
    assert not found.gate.any() and found.distance.isinf().all()
    assert CachedInjection(found, torch.empty(2, 0, 6), 0.8).of(LAYER) is None


def test_anchors_are_injected_in_order_and_read_what_was_written() -> None:
    features, masks, output = unit(3, 9, 4), masks_of(3, 9), draw(6, 9, 5)
    recorded: list[Tensor] = []
    injection = AnchorInjection(features, masks, 0.8, lambda layer, tokens: recorded.append(tokens))
    expected = output.clone()
    for anchor in range(3):
        written = expected[3 + anchor].clone()
        candidates = [(s, p) for s in range(3) if s != anchor for p in range(9) if masks[s, p]]
        best = [max(candidates, key=lambda c: float(features[c] @ token)) for token in features[anchor]]
        distance = torch.stack([1 - features[best[p]] @ features[anchor, p] for p in range(9)])
        for token in range(9):
            if masks[anchor, token] and distance[token] < otsu_threshold(distance):
                source, place = best[token]
                written[token] = 0.2 * expected[3 + anchor, token] + 0.8 * expected[3 + source, place]
        expected[3 + anchor] = written
    before = output.clone()
    injection.inject(LAYER, output)
    torch.testing.assert_close(output, expected)
    assert torch.equal(output[:3], before[:3]), "the unconditional half must not change"
    assert not torch.equal(output[3:], before[3:])
    torch.testing.assert_close(recorded[0], expected[3:][masks])


def test_a_single_anchor_has_no_source() -> None:
    output = draw(2, 9, 5)
    before = output.clone()
    AnchorInjection(unit(1, 9, 4), masks_of(1, 9), 0.8).inject(LAYER, output)
    assert torch.equal(output, before)


def test_scenes_read_the_cached_outputs_of_their_layer() -> None:
    features, masks, sources = unit(2, 9, 4), masks_of(2, 9), unit(7, 4, seed=2)
    found, cached, output = match(features, masks, sources), draw(2, 7, 5, seed=3), draw(4, 9, 5)
    expected = output.clone()
    for image in range(2):
        for token in range(9):
            if found.gate[image, token]:
                source = cached[1, found.index[image, token]]
                expected[2 + image, token] = 0.2 * output[2 + image, token] + 0.8 * source
    injection = CachedInjection(found, cached, 0.8).of(LAYER)
    assert injection is not None
    injection(output)
    torch.testing.assert_close(output, expected)
