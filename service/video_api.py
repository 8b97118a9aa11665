"""The routes of videos."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from service import bodies
from service.answers import PROBLEMS, check_limit, json_answer
from service.parts import PartsOf
from service.problems import ProblemError
from service.settings import Settings
from service.state import CHANGED, FEATURE_LIMIT, NEW, UNCHANGED, Video, pack_video
from service.video_files import VideoChunk, VideoFileError, read_arrow_stream, read_npz

_NPZ: Final = "application/x-npz"
_ARROW: Final = "application/vnd.apache.arrow.stream"
_EXPANSION: Final = 4
_VIDEOS_SCHEMA: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "application/json": {"schema": bodies.VideosIn.model_json_schema()},
        _NPZ: {"schema": {"type": "string", "format": "binary"}},
        _ARROW: {"schema": {"type": "string", "format": "binary"}},
    },
}
_Good = list[tuple[str, bytes]]
_Faults = dict[int, str]

router = APIRouter(responses=PROBLEMS)


@router.put(
    "/videos", response_model=bodies.VideosOut, openapi_extra={"requestBody": _VIDEOS_SCHEMA}
)
async def put_videos(request: Request, parts: PartsOf) -> Response:
    """Register videos, or change them, as JSON, npz or Arrow. Features are kept as float16."""
    content_type = request.headers.get("content-type", "application/json")
    kind = content_type.partition(";")[0].strip().lower()
    width = parts.live.current().manifest.layout.feature_dim
    raw = await request.body()
    if kind == "application/json":
        good, faults = _from_json(raw, width, parts.settings.max_videos)
    elif kind in (_NPZ, _ARROW):
        # A large body takes a while: not on the event loop.
        good, faults = await asyncio.to_thread(_from_binary, kind, raw, width, parts.settings)
    else:
        taken = f"application/json, {_NPZ}, {_ARROW}"
        raise ProblemError(415, f"content type {kind!r} is not taken: {taken} are")
    if faults and not good:
        errors = [
            {"pointer": f"/videos/{index}", "detail": reason}
            for index, reason in list(faults.items())[:20]
        ]
        raise ProblemError(422, f"none of {len(faults)} videos is valid", errors=errors)
    results = await parts.state.register_packed(good)
    stored = [(video_id, result) for (video_id, _), result in zip(good, results, strict=True)]
    parts.changes.drop([video_id for video_id, result in stored if result == CHANGED])
    parts.changes.appear([video_id for video_id, result in stored if result == NEW])
    unchanged = results.count(UNCHANGED)
    listed = [{"index": index, "reason": faults[index]} for index in sorted(faults)]
    return json_answer({"accepted": len(good), "unchanged": unchanged, "faults": listed})


@router.get("/videos/{video_id:id}", response_model=bodies.VideoIn)
async def get_video(video_id: bodies.Identifier, parts: PartsOf) -> Response:
    """Read a registered video."""
    [video] = await parts.state.videos([video_id])
    if video is None:
        raise ProblemError(404, f"video {video_id!r} is not registered: PUT /videos does it")
    features = video.features.tolist()
    return json_answer({"video_id": video_id, "category": video.category, "features": features})


@router.delete("/videos/{video_id:id}", response_model=bodies.DeletedVideoOut)
async def delete_video(video_id: bodies.Identifier, parts: PartsOf) -> Response:
    """Delete a video. Histories keep the clicks on it; models no longer see them."""
    existed = await parts.state.delete_video(video_id)
    parts.changes.drop([video_id])
    return json_answer({"video_id": video_id, "existed": existed})


def _from_json(raw: bytes, width: int, limit: int) -> tuple[_Good, _Faults]:
    try:
        videos = bodies.VideosIn.model_validate(json.loads(raw)).videos
    except ValidationError as exc:
        found = [{**fault, "loc": ("body", *fault["loc"])} for fault in exc.errors()]
        raise RequestValidationError(found) from None
    except (ValueError, RecursionError):
        raise ProblemError(400, "the body is not JSON") from None
    check_limit("videos", len(videos), limit)
    good: _Good = []
    faults: _Faults = {}
    for index, video in enumerate(videos):
        try:
            good.append(_video(video, width))
        except ValidationError as exc:
            faults[index] = bodies.reasons(exc)
        except ValueError as exc:
            faults[index] = str(exc)
    return good, faults


def _video(raw: object, width: int) -> tuple[str, bytes]:
    given = bodies.VideoIn.model_validate(raw)
    if len(given.features) != width:
        raise ValueError(f"features: {len(given.features)} given, the model takes {width}")
    features = np.array(given.features, np.float64)
    if features.size and np.abs(features).max() > FEATURE_LIMIT:
        raise ValueError(f"features: magnitudes above {FEATURE_LIMIT:.0f} cannot be stored")
    return given.video_id, pack_video(Video(given.category, features.astype(np.float32)))


def _from_binary(kind: str, raw: bytes, width: int, settings: Settings) -> tuple[_Good, _Faults]:
    good: _Good = []
    faults: _Faults = {}
    rows = 0
    try:
        for chunk in _chunks(kind, raw, settings):
            rows += len(chunk.video_ids)
            check_limit("videos", rows, settings.max_bulk_videos)
            found = chunk.faults(width)
            faults |= {rows - len(chunk.video_ids) + row: fault for row, fault in found.items()}
            good += (chunk.without(list(found)) if found else chunk).packed()
    except VideoFileError as exc:
        missing = "pyarrow" in str(exc) and kind == _ARROW
        raise ProblemError(415 if missing else 422, f"{kind}: {exc}") from None
    return good, faults


def _chunks(kind: str, raw: bytes, settings: Settings) -> Iterable[VideoChunk]:
    if kind == _ARROW:
        return [read_arrow_stream(raw)]
    # What a small body may expand to is limited, too.
    return read_npz(io.BytesIO(raw), expanded_limit=_EXPANSION * settings.max_body_bytes)
