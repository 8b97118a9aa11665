"""``python -m training VERB``: parses, wires and prints; no logic of its own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from model_store import ModelStore, ModelStoreError
from training.config import MODELS, PRESETS, load_config
from training.errors import TrainingError
from training.ranking import CUTOFFS, MEASURES

if TYPE_CHECKING:
    from pydantic import JsonValue

    from training.calibrate import Calibration


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 when done, 1 when refused, with the reason on stderr."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.verb(parsed)
    except (TrainingError, ModelStoreError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "interrupted; the same command goes on after the last finished epoch", file=sys.stderr
        )
        return 130
    return 0


def fit_verb(options: argparse.Namespace) -> None:
    """Train on a log."""
    # Imports inside the verbs: --help and promote should not wait for torch.
    from training.calibrate import calibrate  # noqa: PLC0415
    from training.fit import fit  # noqa: PLC0415
    from training.interactions import load_click_log  # noqa: PLC0415

    given = {"seed": options.seed, "model": options.model}
    top = {key: value for key, value in given.items() if value is not None}
    config = load_config(options.preset, overrides=options.config, top=top)
    log = load_click_log(options.data)
    print(f"{len(log.train):,} training impressions, {len(log.train_features):,} videos")
    progress = fit(config, log, options.out)
    print(f"best epoch {progress.best_epoch}: validation gAUC {progress.best_auc:.4f}")
    _print_calibration(calibrate(options.out, log))


def calibrate_verb(options: argparse.Namespace) -> None:
    """Fit a run's calibration to its validation split."""
    from training.calibrate import calibrate  # noqa: PLC0415
    from training.interactions import load_click_log  # noqa: PLC0415

    _print_calibration(calibrate(options.run, load_click_log(options.data)))


def _print_calibration(line: Calibration) -> None:
    print(
        f"calibrated logit = {line.slope:.4f} * (logit {line.prior_shift:+.4f}) {line.intercept:+.4f}"
    )


def evaluate_verb(options: argparse.Namespace) -> None:
    """Score a test file and write evaluation.json and evaluation_logits.npy to the run."""
    import numpy as np  # noqa: PLC0415

    from training.calibrate import load_calibration  # noqa: PLC0415
    from training.evaluate import measure, measure_lists, score, test_examples  # noqa: PLC0415
    from training.fit import load_run  # noqa: PLC0415
    from training.interactions import load_click_log  # noqa: PLC0415

    config, network = load_run(options.run)
    log = load_click_log(options.data, test_file=options.test_file)
    if log.test is None:
        raise TrainingError(f"{options.data} has no test_data.csv: name one with --test-file")
    raw = score(network, test_examples(config, log, log.test))
    logits = load_calibration(options.run).apply(raw)
    measured, lists = measure(log.test, logits), measure_lists(log.test, logits)
    uncalibrated = measure(log.test, raw)
    for name in ("log_loss", "ece", "predicted_over_observed"):
        measured[f"uncalibrated_{name}"] = uncalibrated[name]
    np.save(options.run / "evaluation_logits.npy", logits)
    (options.run / "evaluation.json").write_text(json.dumps({**measured, **lists}, indent=2) + "\n")
    for name, value in measured.items():
        whole = name in {"users", "impressions"}
        print(f"{name:36s} {value:,.0f}" if whole else f"{name:36s} {value:.4f}")
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
        network, moved = lowered(config, network, options.data)
        print(moved)
        provenance["validation"] = asdict(moved)
    evaluation = options.run / "evaluation.json"
    measured = json.loads(evaluation.read_text()) if evaluation.exists() else {}
    # A version carries the figures that say how good it is, not the curves.
    figures = {name: value for name, value in measured.items() if "@" not in name}
    line, store = load_calibration(options.run), ModelStore(options.store)
    publish_ = partial(publish, calibration=line, precision=options.precision)
    print(publish_(network, store, metrics=figures, provenance=provenance))


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
    log = load_click_log(options.data, test_file=options.test_file)
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

    summary, distributions = inspect_log(load_click_log(options.data, test_file=options.test_file))
    print(inspection_text(summary, distributions))
    if options.out is not None:
        write_inspection(summary, distributions, options.out)
        print(f"{options.out / 'inspection.html'}")


def synthesize_verb(options: argparse.Namespace) -> None:
    """Write a synthetic world's click log."""
    from training.synthetic import synthesize  # noqa: PLC0415

    report = synthesize(
        options.out,
        users=options.users,
        videos=options.videos,
        interactions=options.interactions,
        seed=options.seed,
    )
    print(
        f"{report.train_rows:,} training and {report.test_rows:,} test impressions in "
        f"{options.out}, {report.click_share:.1%} clicked"
    )
    print(f"best possible per-user AUC of the test file: {report.oracle_auc:.4f}")


_PATH = """\
from a log to a served version:
  python -m training inspect  --data LOG
  python -m training fit      --data LOG --out RUN
  python -m training evaluate --data LOG --run RUN
  python -m training export   --run RUN --store STORE      # prints VERSION
  python -m training promote VERSION --store STORE

which model is best on this log, and how sure that is:
  python -m training compare  --data LOG --seeds 3 --out REPORT

no log at hand:
  python -m training synthesize --out LOG

LOG is a directory in the layout of MicroVideo-1.7M: train_data.csv, test_data.csv (user_id,
item_id, cate_id, is_click, timestamp in ms) and {train,test}_cover_image_feature.npy.
Every verb explains itself: python -m training VERB --help
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="From a raw click log to a published THACIL version.",
        epilog=_PATH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_training(verbs)
    _add_publishing(verbs)
    _add_reports(verbs)
    _add_sources(verbs)
    return parser


def _add_training(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fit = verbs.add_parser(
        "fit",
        help="train on a click log",
        description="Trains, stops when the validation split of the training file no longer gets "
        "better, and calibrates. The same command after an interruption goes on.",
    )
    fit.add_argument("--data", type=Path, required=True, help="directory in MicroVideo-1.7M layout")
    fit.add_argument("--preset", choices=PRESETS, default="modern")
    fit.add_argument("--model", choices=MODELS, help="which network; thacil when not given")
    fit.add_argument("--config", type=Path, help="TOML file of departures from the preset")
    fit.add_argument("--seed", type=int, help="overrides the configuration's")
    fit.add_argument("--out", type=Path, required=True, help="run directory; resumes if begun")
    fit.set_defaults(verb=fit_verb)

    evaluate = verbs.add_parser(
        "evaluate",
        help="score a test file with a trained run",
        description="Prints AUC per user, gAUC, log loss, calibration and top-K lists, and writes "
        "evaluation.json and evaluation_logits.npy into the run.",
    )
    evaluate.add_argument("--run", type=Path, required=True, help="directory that fit wrote")
    evaluate.add_argument("--data", type=Path, required=True)
    evaluate.add_argument(
        "--test-file", help="another CSV, of the test videos; a path or a name in DATA"
    )
    evaluate.set_defaults(verb=evaluate_verb)

    calibrate = verbs.add_parser(
        "calibrate",
        help="fit a run's calibration again",
        description="Fits the line that makes probabilities of a run's logits to its validation "
        "split. fit does it too; this is for weights that were changed since.",
    )
    calibrate.add_argument("--run", type=Path, required=True)
    calibrate.add_argument("--data", type=Path, required=True)
    calibrate.set_defaults(verb=calibrate_verb)


def _add_publishing(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = verbs.add_parser(
        "export",
        help="publish a trained run as a version",
        description="Exports three ONNX graphs, calibration folded in, proves them on golden cases "
        "and publishes them. Prints the version; nothing serves it before promote.",
    )
    export.add_argument("--run", type=Path, required=True)
    export.add_argument("--store", type=Path, required=True)
    export.add_argument(
        "--precision",
        choices=("float32", "float16"),
        default="float32",
        help="of the weights; float16 halves the files, runs no faster on a CPU, and is refused "
        "where gAUC on validation moves by 1e-4 or more (float32)",
    )
    export.add_argument("--data", type=Path, help="the run's log, for a lower precision")
    export.set_defaults(verb=export_verb)

    promote = verbs.add_parser("promote", help="make a version the current one")
    promote.add_argument("version")
    promote.add_argument("--store", type=Path, required=True)
    promote.set_defaults(verb=promote_verb)


def _add_reports(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    inspect = verbs.add_parser(
        "inspect",
        help="say what a log holds and what looks wrong",
        description="Prints users, videos, click share, history lengths, time span, the paper's "
        "Fig. 3 and what looks wrong with the log.",
    )
    inspect.add_argument("--data", type=Path, required=True, help="the log's directory")
    inspect.add_argument("--test-file", help="another CSV of the test videos")
    inspect.add_argument("--out", type=Path, help="also write inspection.html and .json there")
    inspect.set_defaults(verb=inspect_verb)

    compare = verbs.add_parser(
        "compare",
        help="train and test several models under one protocol",
        description="Trains each model with each seed, scores the test file and writes "
        "report.html, report.json and user_auc.csv. The same command with more models or seeds "
        "does only what is new; after an interruption it goes on.",
    )
    compare.add_argument("--data", type=Path, required=True, help="the log's directory")
    compare.add_argument(
        "--models",
        type=_names,
        default=list(MODELS),
        metavar="A,B,...",
        help=f"each MODEL, MODEL@PRESET or MODEL@FILE.toml; models are {', '.join(MODELS)} "
        "(all, when not given)",
    )
    compare.add_argument(
        "--seeds", type=_count, default=3, metavar="N", help="seeds 1 to N of each (3)"
    )
    compare.add_argument(
        "--preset", choices=PRESETS, default="modern", help="of models that name none (modern)"
    )
    compare.add_argument("--config", type=Path, help="TOML file of departures, for all models")
    compare.add_argument(
        "--against", metavar="NAME", help="whom the others are held against (the first thacil)"
    )
    compare.add_argument(
        "--cutoffs",
        type=_counts,
        default=list(CUTOFFS),
        metavar="K,K,...",
        help="lengths of top lists (10,20,...,100)",
    )
    compare.add_argument("--test-file", help="another CSV of the test videos")
    compare.add_argument("--out", type=Path, required=True, help="directory of report and runs")
    compare.set_defaults(verb=compare_verb)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _add_sources(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    synthesize = verbs.add_parser("synthesize", help="write a synthetic world's click log")
    synthesize.add_argument("--users", type=int, default=600)
    synthesize.add_argument("--videos", type=int, default=6000)
    synthesize.add_argument("--interactions", type=int, default=150_000)
    synthesize.add_argument("--seed", type=int, default=7)
    synthesize.add_argument("--out", type=Path, required=True)
    synthesize.set_defaults(verb=synthesize_verb)

    imported = verbs.add_parser(
        "import-checkpoint", help="publish a TensorFlow checkpoint of the reference code"
    )
    imported.add_argument("--checkpoint", required=True, help="path without .index or .data-...")
    imported.add_argument("--store", type=Path, required=True)
    imported.add_argument("--blocks", type=int, default=8, help="temporal blocks (8)")
    imported.add_argument("--block-size", type=int, default=20, help="clicks per block (20)")
    imported.set_defaults(verb=import_verb)


if __name__ == "__main__":
    sys.exit(main())
