"""The state against a plain in-memory model of it, over every kind of server."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from dataclasses import dataclass, field
from itertools import count

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from model_store import Click, visible_history
from service.packed_profile import Origin, pack_profile, read_origin
from service.state import NewClick, NewProfile, State
from service.state.keys import user_keys

START = 1_700_000_000_000
_serial = count()

videos = st.sampled_from(["a", "b", "é", "Z", "a:1", "}", "%7D", "~", "ab"])
moments = st.integers(START, START + 400)
event_ids = st.sampled_from(["", "", "e1", "e2", "ü}"])
users = st.sampled_from(["u", "}", "%7D", "ü:m"])
news = st.builds(NewClick, users, st.builds(Click, moments, videos), event_ids)


@dataclass
class Remembered:
    """What the definition says of a user."""

    clicks: list[Click] = field(default_factory=list)
    event_ids: deque[str] = field(default_factory=lambda: deque(maxlen=160))
    refused_until: int = 0
    version: int = 0
    highest: int = 0
    """Of all versions so far, also of those before an expiry."""

    def deliver(self, new: NewClick) -> str:
        if new.event_id and new.event_id in self.event_ids:
            return "duplicate"
        if new.click.clicked_at_ms <= self.refused_until:
            return "deleted"
        if new.click in self.clicks:
            return "duplicate"
        after = visible_history([*self.clicks, new.click])
        if new.click not in after:
            return "too_old"
        self.clicks = after
        if new.event_id:
            self.event_ids.append(new.event_id)
        return "accepted" if after[-1] == new.click else "late"


class Machine(RuleBasedStateMachine):
    """Delivers, repeats, reorders and deletes; compares after every step."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.states = [State(self.url) for _ in range(3)]
        self.model: dict[str, Remembered] = defaultdict(Remembered)
        self.prefix = f"{next(_serial)}:"
        self.sent: list[NewClick] = []

    def teardown(self) -> None:
        for state in self.states:
            self.loop.run_until_complete(state.close())
        self.loop.close()

    def name(self, new: NewClick) -> NewClick:
        return NewClick(self.prefix + new.user_id, new.click, new.event_id)

    @rule(batch=st.lists(news, min_size=1, max_size=30))
    def append(self, batch: list[NewClick]) -> None:
        self.deliver([self.name(new) for new in batch])

    @rule(user=users, size=st.integers(150, 170), step=st.integers(1, 2))
    def fill(self, user: str, size: int, step: int) -> None:
        clicks = [Click(START + 100 + step * i, f"f{i}") for i in range(size)]
        self.deliver([self.name(NewClick(user, c, f"{c.clicked_at_ms}")) for c in clicks])

    @rule(random=st.randoms(use_true_random=False))
    def repeat(self, random) -> None:
        again = random.sample(self.sent, min(len(self.sent), 40))
        self.deliver(again)

    @rule(batch=st.lists(news, min_size=1, max_size=20), random=st.randoms(use_true_random=False))
    def deliver_at_once(self, batch: list[NewClick], random) -> None:
        """Several processes deliver shuffled copies of the same clicks, without event ids."""
        named = [NewClick(self.prefix + new.user_id, new.click) for new in batch]
        copies = [random.sample(named, len(named)) for _ in self.states]

        async def deliver() -> None:
            pairs = zip(self.states, copies, strict=True)
            await asyncio.gather(*(state.append(copy) for state, copy in pairs))

        before = {new.user_id: self.model[new.user_id].clicks for new in named}
        self.loop.run_until_complete(deliver())
        for new in named:
            self.model[new.user_id].deliver(new)
        for user_id, clicks in before.items():
            self.compare(user_id, changed=clicks != self.model[user_id].clicks)

    @rule(user=users)
    def delete(self, user: str) -> None:
        user_id = self.prefix + user
        remembered = self.model[user_id]
        had = bool(remembered.clicks)
        deleted = self.loop.run_until_complete(self.states[0].delete_user(user_id))
        assert deleted.existed == had
        newest = max((c.clicked_at_ms for c in remembered.clicks), default=0)
        assert deleted.refused_until_ms >= newest
        # Clicks of this suite lie in the past: from here on all of them are refused.
        self.model[user_id] = Remembered(
            refused_until=deleted.refused_until_ms,
            version=remembered.version,
            highest=remembered.highest,
        )
        self.compare(user_id, changed=had)

    @rule(user=users, video=videos)
    def come_back(self, user: str, video: str) -> None:
        """A click later than the deletion, and than all others."""
        remembered = self.model[self.prefix + user]
        newest = max((c.clicked_at_ms for c in remembered.clicks), default=START)
        later = Click(max(remembered.refused_until, newest) + 1, video)
        self.deliver([NewClick(self.prefix + user, later)])

    @rule(user=users)
    def expire(self, user: str) -> None:
        """All keys of a user end at once: a stranger, whose versions are new all the same."""
        user_id = self.prefix + user
        calls = [("DEL", *user_keys(user_id)[:3])]
        self.loop.run_until_complete(self.states[0]._door.call(calls))
        self.model[user_id] = Remembered(highest=self.model[user_id].highest)
        self.compare(user_id, changed=False)

    @rule(user=users, behind=st.integers(0, 2), read_at=st.integers(START, START + 3))
    def profile(self, user: str, behind: int, read_at: int) -> None:
        """Stored only if of the present history, and of facts no older than those of the stored one."""
        user_id = self.prefix + user
        position = self.model[user_id].version
        if not position:
            return
        version = position - behind
        origin = Origin("m", version, read_at, np.zeros(0, np.uint32))
        packed = pack_profile(np.full((1, 1), read_at % 7, np.float32), origin)
        view = self.loop.run_until_complete(self.states[1].view(user_id, []))
        before = read_origin(view.profile)
        newer = before is not None and before.history_version == version
        newer = newer and before.read_at_ms > read_at
        new = NewProfile(user_id, version, packed, read_at_ms=read_at)
        [stored] = self.loop.run_until_complete(self.states[0].store_profiles([new]))
        after = self.loop.run_until_complete(self.states[2].view(user_id, [])).profile

        assert stored == (behind == 0 and not newer)
        assert after == (packed if stored else view.profile)

    def deliver(self, batch: list[NewClick]) -> None:
        if not batch:
            return
        self.sent += batch
        users = {new.user_id for new in batch}
        before = {user: self.bytes_of(user) for user in users}
        appended = self.loop.run_until_complete(self.states[0].append(batch))
        expected = [self.model[new.user_id].deliver(new) for new in batch]
        assert appended.verdicts == expected
        moved = {
            new.user_id
            for new, verdict in zip(batch, expected, strict=True)
            if verdict in ("accepted", "late")
        }
        for user in users:
            self.compare(user, changed=user in moved)
            assert appended.users[user].length == len(self.model[user].clicks)
            assert appended.users[user].version == self.model[user].version
            if user not in moved:
                assert self.bytes_of(user) == before[user]

    def compare(self, user: str, *, changed: bool) -> None:
        history = self.loop.run_until_complete(self.states[-1].history(user))
        remembered = self.model[user]
        assert history.clicks == remembered.clicks
        assert history.meta.position.length == len(remembered.clicks)
        if changed:
            assert history.meta.position.version > remembered.highest
            remembered.version = remembered.highest = history.meta.position.version
        assert history.meta.position.version == remembered.version

    def bytes_of(self, user: str) -> list[object]:
        keys = user_keys(user)
        calls = [("GET", keys.meta), ("LRANGE", keys.history, 0, -1)]
        return self.loop.run_until_complete(self.states[0]._door.call(calls))


@pytest.mark.timeout(300)
def test_state_is_what_its_definition_says(url: str) -> None:
    """Verdicts, histories, versions and bytes, whatever is delivered, in whatever order."""

    class Here(Machine):
        pass

    Here.url = url
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=30,
            stateful_step_count=15,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            # The steps that led there are told; shorter ones would take minutes to find.
            phases=[Phase.explicit, Phase.generate],
        ),
    )
