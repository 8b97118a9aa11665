"""The benchmark of the trainer times two implementations of one network."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.per_row import PerRowThacil
from benchmarks.training import CATEGORIES, FEATURES, make_world, same_answers, train_ours
from training.config import load_config
from training.evaluate import build_network
from training.models.thacil import Thacil


def test_both_sides_give_the_same_answers_and_ours_learns() -> None:
    """Of the preset that is timed, with its own loss."""
    torch.manual_seed(0)
    world = make_world(2, 600, np.random.default_rng(0))
    config = load_config("modern", top={"threads": 1})
    network = build_network(config, feature_dim=FEATURES, num_categories=CATEGORIES)

    assert same_answers(world, config, network, PerRowThacil(FEATURES, CATEGORIES)) < 1e-4
    assert isinstance(network, Thacil)
    before = network.output.weight.detach().clone()
    assert next(train_ours(world, config, network)) == config.optim.batch_size
    assert not torch.equal(before, network.output.weight)
