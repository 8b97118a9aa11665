"""A look at a user's state that is on its way to Redis and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from service.state import Look, View


class Looking(NamedTuple):
    """A look at a user and at videos, and at those that the user's profile misses.

    Attributes:
        look: as the state has it.
        missing: videos that are asked about behind those that are asked for.
    """

    look: Look
    missing: Sequence[str]

    def told_apart(self, view: View) -> View:
        """Take the missing videos out of those that were asked for."""
        if not self.missing:
            return view
        count = len(view.videos) - len(self.missing)
        found = zip(self.missing, view.videos[count:], strict=True)
        registered = {video_id: video is not None for video_id, video in found}
        return replace(view, videos=view.videos[:count], registered=registered)
