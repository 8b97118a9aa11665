"""THACIL against the reference network's own numbers, stage by stage."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from training.checkpoint import network_from_arrays
from training.errors import DataError
from training.models.thacil import Thacil, ThacilShape

SMALL = Path(__file__).parents[1] / "reference" / "thacil_small.npz"
SHARED = Path(os.environ.get("CTR_SHARED", Path(__file__).parents[3] / "shared"))
AUTHORS = SHARED / "reference" / "authors_golden.npz"

Case = tuple[dict[str, npt.NDArray[np.float32]], Thacil]


def _load(path: Path, *, num_blocks: int, block_size: int) -> Case:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    weights = {n.removeprefix("weights/"): a for n, a in arrays.items() if n.startswith("weights/")}
    return arrays, network_from_arrays(weights, num_blocks=num_blocks, block_size=block_size)


@pytest.fixture(params=["small", "authors"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "small":
        return _load(SMALL, num_blocks=4, block_size=5)
    if not AUTHORS.is_file():
        pytest.skip("the authors' released weights carry no licence and are not part of this tree")
    return _load(AUTHORS, num_blocks=8, block_size=20)


def _tensor(array: npt.NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(array)


@pytest.mark.parametrize("method", ["profile", "profile_skipping_empty"])
def test_every_stage_is_the_references(case: Case, method: str) -> None:
    """Embedding, profile, user vector and logit are the reference graph's, for every length."""
    golden, network = case

    with torch.inference_mode():
        clicks = network.embed(
            _tensor(golden["history_features"]), _tensor(golden["history_categories"]).long()
        )
        profile = getattr(network, method)(clicks, _tensor(golden["lengths"]))
        candidates = network.embed(
            _tensor(golden["candidate_features"]), _tensor(golden["candidate_categories"]).long()
        )
        user = network.target(profile, candidates)
        logit = network.head(user, candidates)

    assert golden["lengths"].min() == 0
    assert golden["lengths"].max() == network.shape.history_length
    np.testing.assert_array_equal(golden["block_mask"].astype(bool), profile.valid.numpy())
    np.testing.assert_allclose(candidates, golden["candidate_embedding"], atol=2e-6)
    np.testing.assert_allclose(profile.blocks, golden["user_profile"], atol=2e-5)
    np.testing.assert_allclose(user, golden["user_vector"], atol=2e-5)
    np.testing.assert_allclose(logit, golden["logit"], atol=1e-5)


def test_local_and_global_are_the_references(case: Case) -> None:
    """The attention inside blocks (l) and the one between them (g) agree, each by itself."""
    golden, network = case
    blocks, size = network.shape.num_blocks, network.shape.block_size

    with torch.inference_mode():
        clicks = network.embed(
            _tensor(golden["history_features"]), _tensor(golden["history_categories"]).long()
        ).unflatten(1, (blocks, size))
        mask = _tensor(golden["click_mask"]).bool().unflatten(1, (blocks, size))
        local = network.local(clicks, mask)
        between = network.self_attention(local, mask.any(dim=-1))

    np.testing.assert_allclose(local, golden["local"], atol=5e-6)
    np.testing.assert_allclose(between, golden["global_"], atol=5e-6)


@pytest.fixture
def tiny() -> Thacil:
    torch.manual_seed(3)
    shape = ThacilShape(
        feature_dim=6,
        num_categories=5,
        item_dim=4,
        category_dim=4,
        num_heads=2,
        num_blocks=3,
        block_size=4,
        hidden_dim=8,
    )
    return Thacil(shape).eval()


def test_padding_is_never_read(tiny: Thacil) -> None:
    """What stands behind the end of a history changes nothing, for any length."""
    clicks = torch.randn(13, 12, 8)
    lengths = torch.arange(13)
    garbage = clicks.clone()
    for user in range(13):
        garbage[user, user:] = 1e3
        clicks[user, user:] = 0

    with torch.inference_mode():
        expected = tiny.profile(clicks, lengths)
        actual = tiny.profile(garbage, lengths)

    # A block without clicks is masked wherever a candidate looks at it.
    assert torch.equal(expected.valid, actual.valid)
    torch.testing.assert_close(actual.blocks[expected.valid], expected.blocks[expected.valid])


def test_gradients_are_finite_for_every_length(tiny: Thacil) -> None:
    """No history, the empty one included, makes a gradient NaN."""
    for length in range(13):
        clicks = torch.randn(1, 12, 8, requires_grad=True)
        user = torch.zeros(2, dtype=torch.int64)
        tiny(clicks, torch.tensor([length]), user, torch.randn(2, 8)).sum().backward()

        assert clicks.grad is not None
        assert torch.isfinite(clicks.grad).all()
        assert (clicks.grad[0, length:] == 0).all()


def test_unknown_categories_are_a_zero_embedding(tiny: Thacil) -> None:
    """Category C and any outside 0..C-1 mean the same: unknown."""
    embedded = tiny.embed(torch.zeros(3, 6), torch.tensor([5, -1, 10**9]))

    assert (embedded == 0).all()


def test_heads_must_divide_the_embedding() -> None:
    """A shape that cannot be built names both numbers."""
    with pytest.raises(ValueError, match=r"num_heads \(3\).*\(128\)"):
        ThacilShape(feature_dim=4, num_categories=4, num_heads=3)


def test_a_missing_variable_is_named() -> None:
    """A checkpoint of another network is refused with the names of what it lacks."""
    with pytest.raises(DataError, match="no variable category_embedding"):
        network_from_arrays({"THACIL/item_embedding/w1": np.zeros((2, 2), np.float32)})


def test_a_block_is_told_its_age() -> None:
    """0 for the newest with a click, whether empty ones behind it are there or not."""
    torch.manual_seed(0)
    shape = ThacilShape(
        feature_dim=3, num_categories=2, item_dim=2, category_dim=2, num_heads=2, num_blocks=4,
        block_size=3, block_age=True,
    )  # fmt: skip
    network = Thacil(shape).eval()
    assert network.age_embedding is not None
    lengths = torch.tensor([0, 3, 4, 12])
    fused = torch.randn(4, 4, 4)
    with torch.inference_mode():
        told = network.normalise(fused, lengths) - network.norm(fused)
        cut = network.normalise(fused[:, :1], lengths) - network.norm(fused[:, :1])

    expected = [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [3, 2, 1, 0]]
    torch.testing.assert_close(told, network.age_embedding.weight[torch.tensor(expected)])
    torch.testing.assert_close(cut, told[:, :1])
