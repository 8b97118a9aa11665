"""What can be typed after ``python -m training``, and what ``--help`` teaches."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from training.config import MODELS, PRESETS
from training.ranking import CUTOFFS

_FIT = """\
Trains, stops early, and calibrates on the validation split of the training file. Preset modern
stops when gAUC on that split no longer gets better, paper after epochs that hardly lower the
training loss; both take the weights of the epoch with the best gAUC.
Ctrl-C saves; the same command goes on, after a crash from the last checkpoint, and ends with the
weights that it would have had anyway.

RUN gets config.json (all settings), metrics.jsonl (a line per epoch), steps.jsonl (a line every 50
steps), checkpoint.pt, best.pt (what evaluate and export take) and calibration.json."""

_FIT_EXAMPLE = """\
  python -m training fit --data LOG --out RUN
  python -m training fit --data LOG --out RUN --preset paper --seed 2

with departures from the preset in a file, here 'fast.toml':
  [optim]
  batch_size = 2048
  [execution]
  precision = "bfloat16"
  python -m training fit --data LOG --out RUN --config fast.toml

in several processes, each of which reads its share of the users only:
  torchrun --nproc-per-node 2 -m training fit --data LOG --out RUN"""

_Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001  it has no public name

_PATH = """\
from a log to a served version:
  python -m training inspect  --data LOG
  python -m training fit      --data LOG --out RUN
  python -m training evaluate --data LOG --run RUN
  python -m training export   --run RUN --store STORE      # prints VERSION
  python -m training promote VERSION --store STORE

every setting, explained:
  python -m training settings

which model is best on this log, and how sure that is:
  python -m training compare  --data LOG --seeds 3 --out REPORT

no log at hand:
  python -m training synthesize --out LOG

LOG is a directory in the layout of MicroVideo-1.7M: train_data.csv, test_data.csv (user_id,
item_id, cate_id, is_click, timestamp in ms) and {train,test}_cover_image_feature.npy. Instead of
a .csv there may be a .parquet, or a directory of .parquet files, larger than memory too.
Every verb explains itself: python -m training VERB --help
"""


def make_parser() -> argparse.ArgumentParser:
    """Build the parser; ``verb`` of what it parses names the verb."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="From a raw click log to a published THACIL version.",
        epilog=_PATH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_training(verbs)
    _add_publishing(verbs)
    _add_inspect(verbs)
    _add_compare(verbs)
    _add_sources(verbs)
    return parser


def _add(
    verbs: _Verbs, name: str, *, what: str, teaches: str, example: str
) -> argparse.ArgumentParser:
    """Add a verb whose --help says what it does, in whole sentences, and shows it at work."""
    verb = verbs.add_parser(
        name,
        help=what,
        description=teaches,
        epilog=f"for example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(verb=name)
    return verb


def _add_training(verbs: _Verbs) -> None:
    fit = _add(verbs, "fit", what="train on a click log", teaches=_FIT, example=_FIT_EXAMPLE)
    _add_log(fit)
    fit.add_argument(
        "--preset", choices=PRESETS, default="modern", help="what is departed from (modern)"
    )
    fit.add_argument("--model", choices=MODELS, help="which network (the preset's, thacil)")
    fit.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML of departures from the preset; 'settings' prints every key there is, explained",
    )
    fit.add_argument("--seed", type=int, metavar="N", help="overrides the configuration's")
    fit.add_argument(
        "--out", type=Path, required=True, metavar="RUN", help="run directory; goes on if begun"
    )

    settings = _add(
        verbs,
        "settings",
        what="print a preset, every key explained",
        teaches="Prints a preset as TOML: every key that a run can be told, its value and what it\n"
        "does. A file that names only what departs from it is what fit --config takes.",
        example="  python -m training settings --preset paper",
    )
    settings.add_argument("--preset", choices=PRESETS, default="modern", help="which (modern)")

    evaluate = _add(
        verbs,
        "evaluate",
        what="score a test file with a trained run",
        teaches="Prints AUC per user, gAUC, log loss, calibration, how far THACIL's attention is from\n"
        "uniform, and top-K lists, and writes evaluation.json and evaluation_logits.npy (rows as in\n"
        "the file) into the run.",
        example="  python -m training evaluate --data LOG --run RUN --test-file later.csv",
    )
    _add_run(evaluate)
    _add_log(evaluate, with_test=True)

    calibrate = _add(
        verbs,
        "calibrate",
        what="fit a run's calibration again",
        teaches="Fits the line that makes probabilities of a run's logits to its validation split.\n"
        "fit does it too; this is for weights that were changed since.",
        example="  python -m training calibrate --data LOG --run RUN",
    )
    _add_run(calibrate)
    _add_log(calibrate)


def _add_publishing(verbs: _Verbs) -> None:
    export = _add(
        verbs,
        "export",
        what="publish a trained run as a version",
        teaches="Exports three ONNX graphs, calibration folded in, proves them on golden cases and\n"
        "publishes them. Prints the version; nothing serves it before promote.",
        example="  python -m training export --run RUN --store STORE",
    )
    _add_run(export)
    _add_store(export)
    export.add_argument(
        "--precision",
        choices=("float32", "float16"),
        default="float32",
        help="of the weights; float16 halves the files, runs no faster on a CPU, needs --data, and "
        "is refused where gAUC on validation moves by 1e-4 or more (float32)",
    )
    _add_log(export, required=False)

    promote = _add(
        verbs,
        "promote",
        what="make a version the current one",
        teaches="Running services take the version up by themselves. To roll back, promote the one\n"
        "before.",
        example="  python -m training promote VERSION --store STORE",
    )
    promote.add_argument("version", metavar="VERSION", help="as export printed it")
    _add_store(promote)

    imported = _add(
        verbs,
        "import-checkpoint",
        what="publish a TensorFlow checkpoint of the reference code",
        teaches="Publishes the authors' released weights, or others of the same variables. Needs\n"
        "TensorFlow: pip install 'thacil-ctr[checkpoint]'.",
        example="  python -m training import-checkpoint --checkpoint data/ckpt/model --store STORE",
    )
    imported.add_argument(
        "--checkpoint", required=True, metavar="PREFIX", help="path without .index or .data-..."
    )
    _add_store(imported)
    imported.add_argument("--blocks", type=int, default=8, metavar="N", help="temporal blocks (8)")
    imported.add_argument(
        "--block-size", type=int, default=20, metavar="N", help="clicks per block (20)"
    )


def _add_inspect(verbs: _Verbs) -> None:
    inspect = _add(
        verbs,
        "inspect",
        what="say what a log holds and what looks wrong",
        teaches="Prints users, videos, click share, history lengths, time span, the paper's Fig. 3\n"
        "and what looks wrong with the log.",
        example="  python -m training inspect --data LOG --out REPORT",
    )
    _add_log(inspect, with_test=True)
    inspect.add_argument(
        "--out",
        type=Path,
        metavar="REPORT",
        help="also write inspection.html and inspection.json there",
    )


def _add_compare(verbs: _Verbs) -> None:
    compare = _add(
        verbs,
        "compare",
        what="train and test several models under one protocol",
        teaches="Trains each model with each seed, scores the test file and writes report.html,\n"
        "report.json and user_auc.csv. The same command with more models or seeds does only what\n"
        "is new; after an interruption it goes on.",
        example="  python -m training compare --data LOG --seeds 3 --out REPORT \\\n"
        "      --models thacil,thacil@paper,mean_pooling,lstm@wide.toml",
    )
    _add_log(compare, with_test=True)
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
    compare.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML of departures from the preset, of models that name no file: MODEL, MODEL@PRESET",
    )
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
    compare.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="REPORT",
        help="directory of report and runs",
    )


def _add_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--run", type=Path, required=True, metavar="RUN", help="directory that fit wrote"
    )


def _add_store(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--store",
        type=Path,
        required=True,
        metavar="STORE",
        help="directory of published versions; made if missing",
    )


def _add_log(
    verb: argparse.ArgumentParser, *, with_test: bool = False, required: bool = True
) -> None:
    verb.add_argument(
        "--data",
        type=Path,
        required=required,
        metavar="LOG",
        help="directory in MicroVideo-1.7M layout",
    )
    if with_test:
        verb.add_argument(
            "--test-file",
            metavar="FILE",
            help="another table of impressions of the test videos: a path, or a name in LOG",
        )
    verb.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where to keep the columns that LOG is turned into, once (LOG/.columns; where LOG "
        "cannot be written, ~/.cache/thacil-ctr)",
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _add_sources(verbs: _Verbs) -> None:
    synthesize = _add(
        verbs,
        "synthesize",
        what="write a synthetic world's click log",
        teaches="Writes a log in which every user has a few interests that drift, and clicks are\n"
        "drawn from a known probability; prints the best AUC that any model can reach on its test\n"
        "file. The same arguments give the same bytes.",
        example="  python -m training synthesize --users 2000 --videos 50000 "
        "--interactions 1000000 --out LOG",
    )
    for name, count, what in (
        ("users", 600, "users"),
        ("videos", 6000, "videos, a quarter of them only in the test file"),
        ("interactions", 150_000, "impressions, the last fifth of the time being the test file"),
        ("categories", 32, "categories of videos"),
        ("features", 64, "numbers of a video's content feature"),
        ("seed", 7, "another one makes another world"),
    ):
        synthesize.add_argument(
            f"--{name}", type=int, default=count, metavar="N", help=f"{what} ({count:,})"
        )
    synthesize.add_argument(
        "--full-size",
        action="store_true",
        help="the sizes of MicroVideo-1.7M in place of those above: 12.7 million impressions, "
        "1.7 million videos, 512 features; 4 GB on disk, several minutes",
    )
    synthesize.add_argument("--out", type=Path, required=True, metavar="LOG", help="its directory")
