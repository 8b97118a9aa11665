"""What a run can be told, read from TOML: unknown keys refused, all faults reported at once."""

from __future__ import annotations

import difflib
import reprlib
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from training.errors import ConfigError

PRESETS = ("modern", "paper")
ModelName = Literal["thacil", "mean_pooling", "lstm", "lstm_attention", "atrank", "ncf", "bpr"]
MODELS: tuple[str, ...] = get_args(ModelName)

_Positive = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    # Strict: TOML has types, so true is no 1, and "yes" no true.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class NetworkConfig(_Section):
    """Sizes of THACIL and its regularisation inside the graph."""

    item_dim: _Positive = 64
    category_dim: _Positive = 64
    num_heads: _Positive = 8
    num_blocks: _Positive = 8
    block_size: _Positive = 20
    hidden_dim: _Positive = 128
    interaction: bool = False
    """THACIL's head sees u * x of user and candidate, and its sums, beside the paper's [u; x]."""
    block_age: bool = False
    """THACIL adds a trained vector of its age to each block; the paper does not."""
    dropout: _Share = 0.0
    """After every projection, attention scores and the logit included (the reference's way)."""
    hidden_dropout: _Share = 0.0
    """On the hidden layer of the head only."""
    init: Literal["principal", "plain", "reference"] = "plain"
    """``plain``: Glorot for kernels, embeddings and profiles a tenth of unit size; ``principal``: the
    same, but the projection begins with the principal directions of the content features, and the
    categories orthogonal; ``reference``: Glorot for every kernel and, as there, for gain and bias
    of the norm."""


class DataConfig(_Section):
    """Which impressions are learnt from, and what their histories hold."""

    history: Literal["causal", "paper"] = "causal"
    """``causal``: newest clicks strictly before the impression, what serving sees. ``paper``: all
    training clicks of the user, the target and later ones included, a random subset of longer."""
    negatives_per_positive: Annotated[float, Field(gt=0)] | None = None
    """Negatives drawn anew each epoch per user's positive; all when not given."""
    validation_item_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training videos held out: validation is on videos never trained on."""
    validation_time_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Only the last share of the log validates, as a model is used after it was trained."""
    shard_rows: _Positive = 1 << 23
    """Impressions that are in memory and shuffled at a time, about 100 bytes each. A larger log is
    learnt from in shards of whole users, in random order."""


class OptimConfig(_Section):
    """How the weights move."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    coupled: bool = False
    """L2 inside the gradient, as the reference has it (it kills attention units), not decoupled."""
    batch_size: _Positive = 512
    """Impressions per step."""
    rows_per_user: _Positive = 32
    """Neighbouring impressions of a user that stay together in a step and share the work on their
    histories; 1 mixes all impressions, at several times the cost."""
    pairwise_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the loss over pairs of a click and a video that its user passed over, among those
    that ``rows_per_user`` keeps together; the rest is cross entropy. BPR has pairs only."""
    max_epochs: _Positive = 20
    patience: Annotated[int, Field(ge=0)] = 1
    """Epochs without a better validation AUC before the run stops."""
    schedule: Literal["linear", "halve_on_plateau"] = "linear"
    """``linear``: down to a hundredth over max_epochs. ``halve_on_plateau``: the reference's."""
    clip_norm: Annotated[float, Field(gt=0)] = 5.0


class ExecutionConfig(_Section):
    """Where and how fast a run computes; only ``precision`` is part of what it learns."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: CUDA when there."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16``: forward and backward of training in autocast; weights, optimiser and all
    scoring stay float32."""
    compile: bool = False
    """``torch.compile``: minutes of waiting for faster steps afterwards; needs a C++ compiler."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Minutes between checkpoints within an epoch; 0 leaves those at its end."""
    log_steps: _Positive = 50
    """Steps between lines of ``steps.jsonl``."""
    tensorboard: bool = False
    """The same numbers as TensorBoard events; ``pip install 'thacil-ctr[tensorboard]'``."""


class RunConfig(_Section):
    """Everything that decides a run, besides the data."""

    preset: str
    model: ModelName = "thacil"
    """Which network is trained; the baselines take their sizes from ``network``."""
    seed: Annotated[int, Field(ge=0)] = 1
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 leaves the choice to PyTorch."""
    network: NetworkConfig = NetworkConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    execution: ExecutionConfig = ExecutionConfig()

    def learns_as(self, other: RunConfig) -> bool:
        """Say whether two configurations lead to the same weights, wherever they are run."""
        computing = ExecutionConfig(precision=other.execution.precision)
        moved = other.model_copy(update={"execution": computing, "threads": 0})
        own = ExecutionConfig(precision=self.execution.precision)
        return self.model_copy(update={"execution": own, "threads": 0}) == moved


def load_config(
    preset: str, *, overrides: Path | None = None, top: Mapping[str, JsonValue] | None = None
) -> RunConfig:
    """Read a preset, then a TOML file of departures from it, then single values from the CLI.

    Raises:
        ConfigError: unknown preset, unreadable TOML, unknown keys or impossible values.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r} does not exist, there are {', '.join(PRESETS)}")
    merged: dict[str, object] = {"preset": preset, **tomllib.loads(preset_text(preset))}
    departures = {} if overrides is None else _read_toml(overrides)
    faults = {}
    if "preset" in departures:
        given = _told(departures.pop("preset"))
        faults["preset"] = f"a file departs from a preset, got {given}: choose it with --preset"
    merged = _merge(_merge(merged, departures), dict(top or {}))
    return _parse(merged, source=str(overrides or preset), faults=faults)


def preset_text(preset: str) -> str:
    """Return a preset's TOML, comments included."""
    return resources.files("training.presets").joinpath(f"{preset}.toml").read_text()


def parse_config(values: Mapping[str, object], *, source: str) -> RunConfig:
    """Validate a whole configuration.

    Raises:
        ConfigError: with every fault, one a line.
    """
    return _parse(values, source=source, faults={})


def _parse(values: Mapping[str, object], *, source: str, faults: dict[str, str]) -> RunConfig:
    """Validate a whole configuration of which some faults are known already."""
    config = None
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as exc:
        found = ((".".join(map(str, fault["loc"])), fault) for fault in exc.errors())
        faults |= {key: _describe(key, fault) for key, fault in found}
    faults |= _combinations(config or _without(values, faults), faults)
    if config is None or faults:
        lines = [f"  {key}: {text}" for key, text in faults.items()]
        raise ConfigError("\n".join([f"{source}: {len(faults)} fault(s)", *lines]))
    return config


def _describe(key: str, fault: ErrorDetails) -> str:
    """Say what is wrong with a key, and what was given."""
    if fault["type"] == "missing":
        return fault["msg"]
    if fault["type"] != "extra_forbidden":
        return f"{fault['msg']}, got {_told(fault['input'])}"
    near = f", the nearest is {like}" if (like := _nearest(key)) else ""
    return f"there is no such key{near}; 'python -m training settings' prints all"


def _nearest(key: str) -> str | None:
    """Find the key that was meant: the same name in another section, or one spelt much alike."""
    known = {_last(name): name for name in _keys(RunConfig) if name != "preset"}
    like = difflib.get_close_matches(_last(key), known, n=1)
    return known[like[0]] if like else None


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Name all sections and keys."""
    names: list[str] = []
    for name, field in section.model_fields.items():
        names.append(prefix + name)
        below = field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            names += _keys(below, f"{prefix}{name}.")
    return names


def _told(value: object) -> str:
    """Write a value as in TOML, shortened if it is long."""
    return str(value).lower() if isinstance(value, bool) else reprlib.repr(value)


def _combinations(config: RunConfig | None, faulty: Mapping[str, str]) -> dict[str, str]:
    """Values that are possible one by one and not together; of faulty keys nothing more is said."""
    if config is None:
        return {}
    net, optim, data = config.network, config.optim, config.data
    width = net.item_dim + net.category_dim
    rules = (
        (
            width % net.num_heads != 0,
            ("network.num_heads", "network.item_dim", "network.category_dim"),
            f"{net.num_heads} heads do not divide item_dim + category_dim = {width} evenly",
        ),
        (
            config.model == "bpr" and optim.batch_size < 2,  # noqa: PLR2004  a pair
            ("optim.batch_size", "model"),
            "bpr learns from pairs: a step needs at least 2 impressions",
        ),
        (
            # BPR draws its pairs from the whole log.
            config.model != "bpr" and optim.pairwise_share > 0 and optim.rows_per_user < 2,  # noqa: PLR2004  a pair
            ("optim.pairwise_share", "optim.rows_per_user"),
            f"pairs of a user's impressions need rows_per_user >= 2, not {optim.rows_per_user}",
        ),
        (
            data.shard_rows < optim.batch_size,
            ("data.shard_rows", "optim.batch_size"),
            f"a shard of {data.shard_rows} impressions does not fill a step of {optim.batch_size}",
        ),
    )
    return {
        keys[0]: text for is_so, keys, text in rules if is_so and not any(k in faulty for k in keys)
    }


def _without(values: Mapping[str, object], faulty: Mapping[str, str]) -> RunConfig | None:
    """Validate what is left without the faulty keys, so that all faults are told at once."""
    left: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            left[key] = {k: v for k, v in value.items() if f"{key}.{k}" not in faulty}
        elif key not in faulty:
            left[key] = value
    try:
        return RunConfig.model_validate(left)
    except ValidationError:
        return None


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{path} cannot be read as TOML: {exc}") from exc


def _merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return merged
