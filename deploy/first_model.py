"""Fill an empty model store with a demo model; leave any other as it is.

Interrupted, the same command goes on. The click log that the model was trained on stays in the
work directory for the load generator, and beside it the name of the version, in ``version``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from demo import SIZE, DemoError, say, training

from model_store import ModelStore, ModelStoreError


def promoted(store: Path) -> str | None:
    """Name the promoted version, if there is one."""
    try:
        return ModelStore(store).current()
    except ModelStoreError:
        return None


def click_log(work: Path) -> Path:
    """Make the synthetic log once; return its folder."""
    data, unfinished = work / "data", work / "data.unfinished"
    if not data.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
        say("generating a click log")
        training("synthesize", *SIZE, "--seed", "7", "--out", unfinished, quiet=True)
        unfinished.rename(data)
    return data


def main() -> int:
    """Train, export and promote where nothing is promoted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", type=Path, required=True, help="the model store")
    parser.add_argument("--work", type=Path, required=True, help="where log and run are kept")
    options = parser.parse_args()
    try:
        data = click_log(options.work)
        version = promoted(options.store)
        if version is not None:
            say(f"{version} is promoted: nothing to do")
            return 0
        run = options.work / "run"
        say("training")
        training("fit", "--data", data, "--preset", "modern", "--out", run)
        version = training("export", "--run", run, "--store", options.store, quiet=True)
        # First, so that whoever sees the service ready finds it.
        (options.work / "version").write_text(f"{version}\n")
        training("promote", version, "--store", options.store, quiet=True)
        say(f"promoted {version}")
    except (DemoError, OSError) as error:
        print(f"first model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
