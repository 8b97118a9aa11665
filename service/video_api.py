"""The routes of videos."""

from __future__ import annotations

import numpy as np
from fastapi import APIRouter, Response
from pydantic import ValidationError

from service import bodies
from service.answers import PROBLEMS, check_limit, json_answer
from service.parts import PartsOf
from service.problems import ProblemError
from service.state import FEATURE_LIMIT, Video

router = APIRouter(responses=PROBLEMS)


@router.put("/videos", response_model=bodies.VideosOut)
async def put_videos(body: bodies.VideosIn, parts: PartsOf) -> Response:
    """Register videos, or change them. Features are kept as float16."""
    check_limit("videos", len(body.videos), parts.settings.max_videos)
    width = parts.live.current().manifest.layout.feature_dim
    good: list[tuple[str, Video]] = []
    faults: list[dict[str, object]] = []
    for index, raw in enumerate(body.videos):
        try:
            good.append(_video(raw, width))
        except ValidationError as exc:
            faults.append({"index": index, "reason": bodies.reasons(exc)})
        except ValueError as exc:
            faults.append({"index": index, "reason": str(exc)})
    if faults and not good:
        errors = [
            {"pointer": f"/videos/{fault['index']}", "detail": str(fault["reason"])}
            for fault in faults[:20]
        ]
        raise ProblemError(422, f"none of {len(faults)} videos is valid", errors=errors)
    written = await parts.state.register(good)
    parts.changes.drop([v for (v, _), new in zip(good, written, strict=True) if new])
    unchanged = len(written) - sum(written)
    return json_answer({"accepted": len(good), "unchanged": unchanged, "faults": faults})


@router.get("/videos/{video_id:path}", response_model=bodies.VideoIn)
async def get_video(video_id: bodies.Identifier, parts: PartsOf) -> Response:
    """Read a registered video."""
    [video] = await parts.state.videos([video_id])
    if video is None:
        raise ProblemError(404, f"video {video_id!r} is not registered: PUT /videos does it")
    features = video.features.tolist()
    return json_answer({"video_id": video_id, "category": video.category, "features": features})


@router.delete("/videos/{video_id:path}", response_model=bodies.DeletedVideoOut)
async def delete_video(video_id: bodies.Identifier, parts: PartsOf) -> Response:
    """Delete a video. Histories keep the clicks on it; models no longer see them."""
    existed = await parts.state.delete_video(video_id)
    parts.changes.drop([video_id])
    return json_answer({"video_id": video_id, "existed": existed})


def _video(raw: object, width: int) -> tuple[str, Video]:
    given = bodies.VideoIn.model_validate(raw)
    if len(given.features) != width:
        raise ValueError(f"features: {len(given.features)} given, the model takes {width}")
    features = np.array(given.features, np.float64)
    if features.size and np.abs(features).max() > FEATURE_LIMIT:
        raise ValueError(f"features: magnitudes above {FEATURE_LIMIT:.0f} cannot be stored")
    return given.video_id, Video(given.category, features.astype(np.float32))
