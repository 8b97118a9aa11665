"""A configuration is whole or refused."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest
from pydantic import BaseModel

from training.config import PRESETS, RunConfig, load_config
from training.errors import ConfigError


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load(preset: str) -> None:
    """Every preset is a valid configuration of the paper's sizes."""
    config = load_config(preset)

    assert config.preset == preset
    assert config.network.num_blocks * config.network.block_size == 160


def test_modern_history_is_causal() -> None:
    """What is to be served never learns from the future."""
    assert load_config("modern").data.history == "causal"


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    """An unknown key and two impossible values are three faults in one message."""
    path = tmp_path / "run.toml"
    path.write_text("[optim]\nlearning_rat = 1\nbatch_size = 0\n[network]\nnum_heads = -1\n")

    with pytest.raises(ConfigError) as caught:
        load_config("modern", overrides=path)

    message = str(caught.value)
    assert "3 fault(s)" in message
    for key in ("optim.learning_rat", "optim.batch_size", "network.num_heads"):
        assert key in message


def test_departures_keep_the_rest_of_the_preset(tmp_path: Path) -> None:
    """A file of departures changes what it names and nothing else."""
    path = tmp_path / "run.toml"
    path.write_text("[optim]\nbatch_size = 7\n")

    config = load_config("paper", overrides=path, top={"seed": 9})

    assert config.optim.batch_size == 7
    assert config.optim.coupled
    assert config.seed == 9


def test_broken_toml_is_named(tmp_path: Path) -> None:
    """A file that is no TOML is refused by name."""
    path = tmp_path / "run.toml"
    path.write_text("[optim")

    with pytest.raises(ConfigError, match=r"run\.toml cannot be read as TOML"):
        load_config("modern", overrides=path)


def test_unknown_presets_are_refused() -> None:
    """The message lists the presets that there are."""
    with pytest.raises(ConfigError, match="there are modern, paper"):
        load_config("ancient")


def _keys(section: type[BaseModel]) -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        below = field.annotation
        nested = isinstance(below, type) and issubclass(below, BaseModel)
        keys += [f"{name}.{key}" for key in _keys(below)] if nested else [name]
    return keys


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_and_explains_every_key(preset: str) -> None:
    """Each key of the configuration stands in each preset, its default too, with a comment."""
    text = resources.files("training.presets").joinpath(f"{preset}.toml").read_text()
    found, section = {}, ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[] ") + "."
        entry = re.fullmatch(r"(?:# )?(\w+)(?: = \S+|:)\s*#?(.*)", line)
        if entry is not None:
            found[section + entry[1]] = entry[2].strip()

    assert set(found) == set(_keys(RunConfig)) - {"preset"}
    assert all(len(explanation) > 8 for explanation in found.values())


def test_values_that_exclude_each_other_are_refused_with_all_other_faults(tmp_path: Path) -> None:
    """Heads that do not divide the width, a pairless step and an unfilled one, beside a bad key."""
    path = tmp_path / "run.toml"
    path.write_text(
        'model = "bpr"\n[network]\nnum_heads = 7\nitem_dim = 65\n[data]\nshard_rows = 1\n'
        "[optim]\nlearning_rat = 1\nbatch_size = 1\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config("modern", overrides=path)

    assert str(caught.value).splitlines() == [
        f"{path}: 3 fault(s)",
        "  optim.learning_rat: Extra inputs are not permitted",
        "  network.num_heads: 7 heads do not divide item_dim + category_dim = 129 evenly",
        "  optim.batch_size: bpr learns from pairs: a step needs at least 2 impressions",
    ]


def test_pairs_need_impressions_of_a_user_that_stay_together(tmp_path: Path) -> None:
    """Mixing all impressions leaves no pairs: the loss over them has to go, too."""
    path = tmp_path / "run.toml"
    path.write_text("[optim]\nrows_per_user = 1\n")
    with pytest.raises(ConfigError, match=r"pairwise_share: .* rows_per_user >= 2, not 1"):
        load_config("modern", overrides=path)

    path.write_text("[optim]\nrows_per_user = 1\npairwise_share = 0\n")
    assert load_config("modern", overrides=path).optim.rows_per_user == 1


def test_nothing_more_is_said_of_a_faulty_key(tmp_path: Path) -> None:
    """A combination that hangs on an impossible value is not told on top of it."""
    path = tmp_path / "run.toml"
    path.write_text("[network]\nnum_heads = -1\n[data]\nshard_rows = 5\n")

    with pytest.raises(ConfigError, match="2 fault") as caught:
        load_config("modern", overrides=path)

    assert "a shard of 5 impressions does not fill a step of 512" in str(caught.value)
