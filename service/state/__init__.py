"""What is remembered, in Redis (commands of 6.2): the only package that speaks to it.

Raw facts, and profiles that follow from them. ``keys`` names everything, ``codec`` says how
it is packed, ``door`` sends it, ``store`` knows what to ask.
"""

from service.lifetimes import Lifetimes
from service.state.circuit import StateDownError
from service.state.clients import AddressError, check_address
from service.state.codec import FEATURE_LIMIT, Meta, Position, Video, mark, pack_video
from service.state.door import StateFullError
from service.state.facts import (
    Appended,
    Changes,
    Deleted,
    History,
    NewClick,
    NewProfile,
    View,
)
from service.state.store import CHANGED, EVENT_IDS, HISTORY_LENGTH, NEW, UNCHANGED, Look, State

__all__ = [
    "CHANGED",
    "EVENT_IDS",
    "FEATURE_LIMIT",
    "HISTORY_LENGTH",
    "NEW",
    "UNCHANGED",
    "AddressError",
    "Appended",
    "Changes",
    "Deleted",
    "History",
    "Lifetimes",
    "Look",
    "Meta",
    "NewClick",
    "NewProfile",
    "Position",
    "State",
    "StateDownError",
    "StateFullError",
    "Video",
    "View",
    "check_address",
    "mark",
    "pack_video",
]
