"""The profiles that this process saw last: decoded once, and at hand when Redis is gone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model_store import FloatArray, OpenVersion
from service.packed_profile import Origin
from service.state import Position, mark


@dataclass(frozen=True, slots=True)
class Profile:
    """A user as one model version sees them.

    Attributes:
        array: [K, P], of the K blocks that hold clicks, at least one.
        position: the history it was computed from.
        origin: the same and all else it was computed from; ``None`` of a user without clicks.
    """

    array: FloatArray
    position: Position
    origin: Origin | None = None


class LastProfiles:
    """Profiles by user, those used least recently dropped first.

    Args:
        limit: users at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._profiles: OrderedDict[bytes, Profile] = OrderedDict()
        self._moved: set[bytes] = set()
        self._forgotten: OrderedDict[bytes, int] = OrderedDict()

    def __contains__(self, user_id: str) -> bool:
        return mark(user_id) in self._profiles

    def last(self, opened: OpenVersion, user_id: str) -> Profile | None:
        """Return the profile last seen of a user, however old it is."""
        return self._of(opened, mark(user_id))

    def missing(self, opened: OpenVersion, user_id: str) -> Sequence[str]:
        """Return the clicked videos that the profile here skipped: they were not registered."""
        profile = self.last(opened, user_id)
        return () if profile is None or profile.origin is None else profile.origin.missing

    def guess(self, opened: OpenVersion, user_id: str) -> Profile | None:
        """Return the profile that Redis will probably confirm, if there is one."""
        user = mark(user_id)
        return None if user in self._moved else self._of(opened, user)

    def moved(self, user_ids: Iterable[str]) -> None:
        """Say that histories have changed: what is here of them is no guess any more."""
        self._moved.update(filter(self._profiles.__contains__, map(mark, user_ids)))

    def keep(self, user_id: str, profile: Profile) -> None:
        """Remember a profile; not one from before the user's deletion, nor an older one again."""
        key = mark(user_id)
        version = profile.position.version
        if version < self._forgotten.get(key, 0):
            return
        held = self._profiles.get(key)
        if held is not None and held.position.version > version and _same_model(held, profile):
            return
        self._profiles[key] = profile
        self._profiles.move_to_end(key)
        self._moved.discard(key)
        if len(self._profiles) > self._limit:
            self._moved.discard(self._profiles.popitem(last=False)[0])

    def forget(self, user: bytes, before: int) -> None:
        """Drop the profile of a user who was deleted, by the mark, and take none from before.

        Args:
            user: the mark.
            before: version that the deletion left; a history that came after it is newer.
        """
        self._forgotten[user] = before
        self._forgotten.move_to_end(user)
        if len(self._forgotten) > self._limit:
            self._forgotten.popitem(last=False)
        profile = self._profiles.get(user)
        if profile is not None and profile.position.version < before:
            del self._profiles[user]
            self._moved.discard(user)

    def _of(self, opened: OpenVersion, user: bytes) -> Profile | None:
        profile = self._profiles.get(user)
        if profile is None or profile.origin is None:
            return None
        return profile if profile.origin.model_version == opened.manifest.version else None


def _same_model(one: Profile, other: Profile) -> bool:
    models = [each.origin.model_version if each.origin else None for each in (one, other)]
    return models[0] == models[1]
