"""The routes of users: what is kept of one, and its removal."""

from __future__ import annotations

from fastapi import APIRouter, Response

from service import bodies
from service.answers import PROBLEMS, json_answer
from service.parts import PartsOf
from service.state import mark

router = APIRouter(responses=PROBLEMS)


@router.get(
    "/users/{user_id:id}", response_model=bodies.UserStateOut, response_model_exclude_none=True
)
async def get_user(user_id: bodies.Identifier, parts: PartsOf) -> Response:
    """Read a user's history as the model cuts it, and where the stored profile stands."""
    opened = parts.live.current()
    view = await parts.state.view(user_id, [])
    history = await parts.state.history(user_id)
    size = opened.manifest.layout.block_size
    clicks = [{"video_id": c.video_id, "timestamp": c.clicked_at_ms} for c in history.clicks]
    position = history.meta.position
    answer: dict[str, object] = {
        "user_id": user_id,
        "history": {
            "version": position.version,
            "length": len(clicks),
            "blocks": [clicks[i : i + size] for i in range(0, len(clicks), size)],
        },
        "profile": await parts.profiles.describe(opened, history.meta, view.profile),
    }
    if history.meta.refused_until_ms:
        answer["refused_until"] = history.meta.refused_until_ms
    return json_answer(answer)


@router.delete("/users/{user_id:id}", response_model=bodies.DeletedOut)
async def delete_user(user_id: bodies.Identifier, parts: PartsOf) -> Response:
    """Remove every trace of a user. Late retries of old clicks are refused for a while."""
    deleted = await parts.state.delete_user(user_id)
    parts.changes.forget(mark(user_id), deleted.version)
    return json_answer(
        {
            "user_id": user_id,
            "existed": deleted.existed,
            "history_version": deleted.version,
            "refused_until": deleted.refused_until_ms,
        }
    )
