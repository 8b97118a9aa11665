"""A configuration is whole or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import PRESETS, load_config
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
