"""``python -m training VERB``: parses, wires and prints; no logic of its own."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from model_store import ModelStore, ModelStoreError
from training.command_line import make_parser
from training.config import load_config, preset_text
from training.errors import ConfigError, StoppedError, TrainingError
from training.ranking import CUTOFFS, MEASURES

if TYPE_CHECKING:
    from pydantic import JsonValue

    from training.calibrate import Calibration


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 when done, 1 when refused, 128 + n when stopped by signal n."""
    parsed = make_parser().parse_args(arguments)
    try:
        if parsed.verb != "fit" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(f"{parsed.verb} runs in one process: only fit takes torchrun")
        _VERBS[parsed.verb](parsed)
    except StoppedError as exc:
        again = shlex.join([*_launcher(), "-m", "training", *(arguments or sys.argv[1:])])
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped and saved {exc}; to go on from there:\n  {again}", file=sys.stderr)
        return 128 + exc.signal_number
    except (TrainingError, ModelStoreError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped at once; the same command goes on from what was saved last", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _launcher() -> list[str]:
    """What started this process; between machines, torchrun also wants to know where they meet."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ["python"]
    local = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    machines = ["--nnodes", str(count // local)] if count > local else []
    return ["torchrun", *machines, "--nproc-per-node", str(local)]


def fit_verb(options: argparse.Namespace) -> None:
    """Train on a log."""
    # Imports inside the verbs: --help and promote should not wait for torch.
    from training.calibrate import calibrate  # noqa: PLC0415
    from training.fit import fit  # noqa: PLC0415
    from training.interactions import load_click_log  # noqa: PLC0415
    from training.processes import join_processes  # noqa: PLC0415

    given = {"seed": options.seed, "model": options.model}
    top = {key: value for key, value in given.items() if value is not None}
    config = load_config(options.preset, overrides=options.config, top=top)
    with join_processes(config.execution.device) as processes:
        log = load_click_log(options.data, cache=options.cache)
        if processes.is_first:
            print(f"{len(log.train):,} training impressions, {len(log.train_features):,} videos")
        progress = fit(config, log, options.out, processes)
        if processes.is_first:
            best = f"{progress.best_epoch}: validation gAUC {progress.best_auc:.4f}"
            print(f"best epoch {best}")
            _print_calibration(calibrate(options.out, log))


def settings_verb(options: argparse.Namespace) -> None:
    """Print a preset."""
    print(preset_text(options.preset), end="")


def calibrate_verb(options: argparse.Namespace) -> None:
    """Fit a run's calibration to its validation split."""
    from training.calibrate import calibrate  # noqa: PLC0415
    from training.interactions import load_click_log  # noqa: PLC0415

    _print_calibration(calibrate(options.run, load_click_log(options.data, cache=options.cache)))


def _print_calibration(line: Calibration) -> None:
    print(
        f"calibrated logit = {line.slope:.4f} * (logit {line.prior_shift:+.4f}) {line.intercept:+.4f}"
    )


def evaluate_verb(options: argparse.Namespace) -> None:
    """Score a test file and write evaluation.json and evaluation_logits.npy to the run."""
    import numpy as np  # noqa: PLC0415

    from training.attention import attention_deviation, collapsed  # noqa: PLC0415
    from training.calibrate import load_calibration  # noqa: PLC0415
    from training.evaluate import measure, measure_lists, score, test_examples  # noqa: PLC0415
    from training.fit import load_run  # noqa: PLC0415
    from training.interactions import load_click_log  # noqa: PLC0415
    from training.processes import scoring_device  # noqa: PLC0415

    config, network = load_run(options.run)
    log = load_click_log(options.data, test_file=options.test_file, cache=options.cache)
    if log.test is None:
        raise TrainingError(f"{options.data} has no test_data.csv: name one with --test-file")
    network.to(scoring_device(config.execution.device))
    raw = score(network, test_examples(config, log, log.test))
    logits = load_calibration(options.run).apply(raw)
    measured, lists = measure(log.test, logits), measure_lists(log.test, logits)
    uncalibrated = measure(log.test, raw)
    for name in ("log_loss", "ece", "predicted_over_observed"):
        measured[f"uncalibrated_{name}"] = uncalibrated[name]
    attention = attention_deviation(network, config, log, log.test)
    measured |= {f"attention_from_uniform_{name}": value for name, value in attention.items()}
    np.save(options.run / "evaluation_logits.npy", logits)
    (options.run / "evaluation.json").write_text(json.dumps({**measured, **lists}, indent=2) + "\n")
    for name, value in measured.items():
        whole = name in {"users", "impressions"}
        print(f"{name:36s} {value:,.0f}" if whole else f"{name:36s} {value:.4f}")
    if dead := collapsed(attention):
        print(f"collapsed, a plain mean: {', '.join(dead)} attention")
    print(_list_table(lists, title="top K, standard", prefix=""))
    print(_list_table(lists, title="top K, reference", prefix="reference_"))


def _list_table(lists: dict[str, float], *, title: str, prefix: str) -> str:
    rows = [f"{title:24s} " + " ".join(f"{k:>6d}" for k in CUTOFFS)]
    for measure in MEASURES:
        values = (f"{lists[f'{prefix}{measure}@{k}']:.4f}" for k in CUTOFFS)
        rows.append(f"{prefix + measure:24s} " + " ".join(values))
    return "\n".join(rows)


def export_verb(options: argparse.Namespace) -> None:
    """Publish a trained network; the version is the last line printed."""
    from training.calibrate import load_calibration  # noqa: PLC0415
    from training.export import publish  # noqa: PLC0415
    from training.fit import load_run  # noqa: PLC0415
    from training.models.thacil import Thacil  # noqa: PLC0415
    from training.precision import lowered  # noqa: PLC0415

    config, network = load_run(options.run)
    if not isinstance(network, Thacil):
        raise TrainingError(f"{options.run} holds a {config.model} model: only thacil is exported")
    provenance: dict[str, JsonValue] = {"config": config.model_dump(mode="json")}
    if options.precision != "float32":
        network, moved = lowered(config, network, options.data, cache=options.cache)
        print(moved)
        provenance["validation"] = asdict(moved)
    evaluation = options.run / "evaluation.json"
    measured = json.loads(evaluation.read_text()) if evaluation.exists() else {}
    # A version carries the figures that say how good it is, not the curves.
    figures = {name: value for name, value in measured.items() if "@" not in name}
    line, store = load_calibration(options.run), ModelStore(options.store)
    version = publish(
        network,
        store,
        metrics=figures,
        provenance=provenance,
        calibration=line,
        precision=options.precision,
    )
    print(version)


def import_verb(options: argparse.Namespace) -> None:
    """Publish the authors' released weights, or others of the same variables."""
    from training.checkpoint import network_from_arrays, read_checkpoint  # noqa: PLC0415
    from training.export import publish  # noqa: PLC0415

    network = network_from_arrays(
        read_checkpoint(options.checkpoint),
        num_blocks=options.blocks,
        block_size=options.block_size,
    )
    provenance = {"checkpoint": Path(options.checkpoint).name}
    print(publish(network, ModelStore(options.store), provenance=provenance))


def promote_verb(options: argparse.Namespace) -> None:
    """Make a version current."""
    ModelStore(options.store).promote(options.version)
    print(f"{options.version} is current in {options.store}")


def compare_verb(options: argparse.Namespace) -> None:
    """Train and score several models under one protocol and write the report."""
    from training.compare import compare, contenders  # noqa: PLC0415
    from training.inspection import inspect_log  # noqa: PLC0415
    from training.interactions import load_click_log  # noqa: PLC0415
    from training.report import comparison_text, write_comparison  # noqa: PLC0415

    field = contenders(options.models, preset=options.preset, overrides=options.config)
    log = load_click_log(options.data, test_file=options.test_file, cache=options.cache)
    found = compare(
        field,
        log,
        options.out,
        seeds=options.seeds,
        against=options.against,
        cutoffs=options.cutoffs,
    )
    oracle = _oracle(options.data) if options.test_file is None else {}
    write_comparison(found, *inspect_log(log), options.out, oracle=oracle)
    print()
    print(comparison_text(found, oracle))
    print(f"{options.out / 'report.html'}")


def _oracle(data: Path) -> dict[str, float]:
    """Read what the best possible model scores, where ``synthesize`` made the log."""
    world = data / "world.json"
    saved = json.loads(world.read_text()) if world.exists() else {}
    return {name: saved[name] for name in ("oracle_auc", "oracle_gauc") if name in saved}


def inspect_verb(options: argparse.Namespace) -> None:
    """Say what a log holds and what looks wrong with it."""
    from training.inspection import inspect_log  # noqa: PLC0415
    from training.inspection_report import inspection_text, write_inspection  # noqa: PLC0415
    from training.interactions import load_click_log  # noqa: PLC0415

    summary, distributions = inspect_log(
        load_click_log(options.data, test_file=options.test_file, cache=options.cache)
    )
    print(inspection_text(summary, distributions))
    if options.out is not None:
        write_inspection(summary, distributions, options.out)
        print(f"{options.out / 'inspection.html'}")


def synthesize_verb(options: argparse.Namespace) -> None:
    """Write a synthetic world's click log."""
    from training.synthetic import FULL_SIZE, synthesize  # noqa: PLC0415

    sizes = {
        "users": options.users,
        "videos": options.videos,
        "interactions": options.interactions,
        "categories": options.categories,
        "feature_dim": options.features,
    }
    sizes = FULL_SIZE if options.full_size else sizes
    report = synthesize(options.out, seed=options.seed, **sizes)
    print(
        f"{report.train_rows:,} training and {report.test_rows:,} test impressions in "
        f"{options.out}, {report.click_share:.1%} clicked"
    )
    print(f"best possible per-user AUC of the test file: {report.oracle_auc:.4f}")


_VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "fit": fit_verb,
    "settings": settings_verb,
    "calibrate": calibrate_verb,
    "evaluate": evaluate_verb,
    "export": export_verb,
    "import-checkpoint": import_verb,
    "promote": promote_verb,
    "compare": compare_verb,
    "inspect": inspect_verb,
    "synthesize": synthesize_verb,
}


if __name__ == "__main__":
    sys.exit(main())
