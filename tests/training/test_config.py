"""A configuration is whole or refused."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest
from pydantic import BaseModel

from training.config import PRESETS, RunConfig, load_config
from training.errors import ConfigError

ALL = "'python -m training settings' prints all"


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
        f"  optim.learning_rat: there is no such key, the nearest is optim.learning_rate; {ALL}",
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


def test_bpr_has_its_own_pairs(tmp_path: Path) -> None:
    """It leaves pairwise_share unread, so impressions may be mixed beside it."""
    path = tmp_path / "run.toml"
    path.write_text("[optim]\nrows_per_user = 1\n")

    config = load_config("modern", overrides=path, top={"model": "bpr"})

    assert config.optim.pairwise_share > 0
    assert config.optim.rows_per_user == 1


def test_nothing_more_is_said_of_a_faulty_key(tmp_path: Path) -> None:
    """A combination that hangs on an impossible value is not told on top of it."""
    path = tmp_path / "run.toml"
    path.write_text("[network]\nnum_heads = -1\n[data]\nshard_rows = 5\n")

    with pytest.raises(ConfigError, match="2 fault") as caught:
        load_config("modern", overrides=path)

    assert "a shard of 5 impressions does not fill a step of 512" in str(caught.value)


@pytest.mark.parametrize(
    ("section", "line", "told"),
    [
        ("optim", "clip_norm = inf", "finite number, got inf"),
        ("optim", "weight_decay = nan", "finite number, got nan"),
        ("data", "negatives_per_positive = inf", "finite number, got inf"),
        ("execution", "checkpoint_minutes = inf", "finite number, got inf"),
        ("optim", "batch_size = true", "integer, got true"),
        ("optim", "batch_size = 64.0", "integer, got 64.0"),
        ("optim", "learning_rate = true", "number, got true"),
        ("optim", 'coupled = "yes"', "boolean, got 'yes'"),
        ("optim", "coupled = 1", "boolean, got 1"),
        ("optim", "max_epochs = -3", "greater than or equal to 1, got -3"),
        ("network", 'init = "zeros"', "'plain' or 'reference', got 'zeros'"),
    ],
)
def test_a_value_of_another_kind_is_told_as_it_was_given(
    tmp_path: Path, section: str, line: str, told: str
) -> None:
    """Nothing is taken for what it might have meant: no infinity, no 1 for true, no true for 1."""
    path = tmp_path / "run.toml"
    path.write_text(f"[{section}]\n{line}\n")

    with pytest.raises(ConfigError, match="1 fault") as caught:
        load_config("modern", overrides=path)

    assert f"  {section}.{line.partition(' =')[0]}: " in str(caught.value)
    assert str(caught.value).endswith(told)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch_size = 7\n", "batch_size: there is no such key, the nearest is optim.batch_size;"),
        ("[network]\nseed = 7\n", "network.seed: there is no such key, the nearest is seed;"),
        ("[optm]\nbatch_size = 7\n", "optm: there is no such key, the nearest is optim;"),
        ("[data]\nzzz = 7\n", "data.zzz: there is no such key;"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest(tmp_path: Path, text: str, said: str) -> None:
    """In the section where it belongs, if there is one like it; and where all keys stand."""
    path = tmp_path / "run.toml"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        load_config("modern", overrides=path)

    assert f"  {said} {ALL}" in str(caught.value)


def test_a_file_cannot_rename_the_preset(tmp_path: Path) -> None:
    """It departs from the preset that was chosen; a name in it would only say something untrue."""
    path = tmp_path / "run.toml"
    path.write_text('preset = "paper"\n[optim]\nbatch_size = 0\n')

    with pytest.raises(ConfigError, match="2 fault") as caught:
        load_config("modern", overrides=path)

    assert "preset: a file departs from a preset, got 'paper': choose it with --preset" in str(
        caught.value
    )
