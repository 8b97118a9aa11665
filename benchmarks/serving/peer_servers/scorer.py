"""What every peer does with a request: the service's work on its warm path, without its machinery.

One pipeline to Redis (version and profile of the user), candidates' rows from a table in memory,
the same score head on one thread (compiled, or with BENCH_HEAD=graph in ONNX Runtime), the same JSON. Rows that are not in memory are
read from Redis and encoded once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from redis import Redis

from model_store import CPU, GRAPHS_ONLY, ModelStore, click_probabilities
from service.packed_profile import read_array
from service.state.codec import META_BYTES, unpack_meta, unpack_video
from service.state.keys import user_keys, video_key


class Scorer:
    """Scores candidates for users; where things are is said by BENCH_STORE and BENCH_REDIS."""

    def __init__(self) -> None:
        device = GRAPHS_ONLY if os.environ.get("BENCH_HEAD") == "graph" else CPU
        self.opened = ModelStore(Path(os.environ["BENCH_STORE"])).open(device=device)
        self.redis = Redis.from_url(os.environ["BENCH_REDIS"])
        self.slots: dict[str, int] = {}
        self.table = np.empty((32_768, self.opened.manifest.layout.row_dim), np.float32)

    def score(self, user_id: str, video_ids: list[str]) -> dict[str, Any]:
        """Rank registered videos."""
        keys = user_keys(user_id)
        pipeline = self.redis.pipeline(transaction=False)
        pipeline.getrange(keys.meta, 0, META_BYTES - 1)
        pipeline.get(keys.profile)
        meta, packed = pipeline.execute()
        position = unpack_meta(meta).position
        profile = read_array(packed, self.opened)
        if profile is None:
            raise ValueError("no profile")
        missing = [video_id for video_id in video_ids if video_id not in self.slots]
        if missing:
            self._encode(missing)
        rows = self.table[[self.slots[video_id] for video_id in video_ids]]
        probabilities = click_probabilities(self.opened.model.logits(profile, rows))
        order = np.argsort(-probabilities, kind="stable")
        results = [
            {"video_id": video_ids[place], "index": place, "rank": rank, "score": score}
            for rank, (place, score) in enumerate(
                zip(order.tolist(), probabilities[order].tolist(), strict=True), start=1
            )
        ]
        manifest = self.opened.manifest
        return {
            "model": {"name": manifest.model_name, "version": manifest.version},
            "history": {"length": position.length, "version": position.version},
            "results": results,
        }

    def _encode(self, video_ids: list[str]) -> None:
        videos = [unpack_video(v) for v in self.redis.mget([video_key(i) for i in video_ids])]
        features = np.stack([v.features for v in videos if v is not None])
        categories = np.array([v.category for v in videos if v is not None], np.int64)
        rows = self.opened.model.encode_videos(features, categories)
        for video_id, row in zip(video_ids, rows, strict=True):
            self.slots[video_id] = len(self.slots)
            self.table[self.slots[video_id]] = row


def ids_of(candidates: list[dict[str, str]]) -> list[str]:
    """Return the ids of candidates as ``POST /score`` takes them."""
    return [candidate["video_id"] for candidate in candidates]
