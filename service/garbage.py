"""What the start has made is left alone by the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def start_left_alone() -> Iterator[None]:
    """Keep all there is now out of every collection until this is left.

    Modules, routes and schemas are hundreds of thousands of objects that live as long as the
    process. A full collection walks them all, with every request standing still, to find none.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
