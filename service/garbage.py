"""The garbage collector leaves alone what the start has made, and looks seldom for the rest."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_OBJECTS: Final = 10_000
"""That are new since the last collection, more than were freed, before the next."""


@contextmanager
def start_left_alone() -> Iterator[None]:
    """Keep all there is now out of every collection until this is left.

    Modules, routes and schemas are hundreds of thousands of objects that live as long as the
    process. A full collection walks them all, with every request standing still, to find none.

    Nor do requests leave cycles, other than those of FastAPI's own errors, which hold no bodies. By
    default the objects of a few dozen of them at once are enough for a collection, which finds all of
    them in use: a twentieth of the time when there is more to do than can be done.
    """
    usual = gc.get_threshold()
    gc.collect()
    gc.freeze()
    if usual[0]:
        gc.set_threshold(max(usual[0], _OBJECTS), *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()
