"""A plain FastAPI service: the whole network for every candidate, nothing kept between requests.

Each request reads the history and the features of its clicks and candidates from Redis and runs one
graph from features to logits, the history repeated for every candidate.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from redis import Redis

from service.state.codec import unpack_click, unpack_video
from service.state.keys import user_keys, video_key

app = FastAPI()
redis = Redis.from_url(os.environ["BENCH_REDIS"])
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(
    os.environ["BENCH_WHOLE"], options, providers=["CPUExecutionProvider"]
)


class Candidate(BaseModel):
    """A registered video."""

    video_id: str


class Asked(BaseModel):
    """Whom to rank what for."""

    user_id: str
    candidates: list[Candidate]


@app.get("/health/ready")
def ready() -> dict[str, str]:
    """Say so."""
    return {"status": "ready"}


@app.post("/score")
def score(asked: Asked) -> dict[str, Any]:
    """Rank."""
    entries = redis.lrange(user_keys(asked.user_id).history, 0, -1)
    clicked = [unpack_click(entry).video_id for entry in entries]
    video_ids = [candidate.video_id for candidate in asked.candidates]
    history, categories = _contents(clicked)
    features, candidate_categories = _contents(video_ids)
    count = len(video_ids)
    inputs = {
        "features": np.repeat(history[None], count, 0),
        "categories": np.repeat(categories[None], count, 0),
        "candidates": features,
        "candidate_category": candidate_categories,
    }
    logits = session.run(None, inputs)[0]
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    order = np.argsort(-probabilities, kind="stable").tolist()
    results = [
        {"video_id": video_ids[p], "index": p, "rank": rank, "score": float(probabilities[p])}
        for rank, p in enumerate(order, start=1)
    ]
    return {"history": {"length": len(clicked)}, "results": results}


def _contents(video_ids: list[str]) -> tuple[Any, Any]:
    videos = [unpack_video(v) for v in redis.mget([video_key(i) for i in video_ids])]
    features = np.stack([v.features for v in videos if v is not None]).astype(np.float32)
    return features, np.array([v.category for v in videos if v is not None], np.int64)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
