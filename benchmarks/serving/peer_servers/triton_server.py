"""Triton by nvidia-pytriton: a bound Python function, dynamic batching left to Triton.

Triton speaks its own protocol: the body of ``POST /score`` goes in, and its answer comes out, as one
string tensor.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.serving.peer_servers.scorer import Scorer, ids_of

scorer = Scorer()


@batch
def score(body: Any) -> dict[str, Any]:
    """Rank for each row of a batch."""
    answers = []
    for [text] in body:
        asked = json.loads(text)
        ranked = scorer.score(asked["user_id"], ids_of(asked["candidates"]))
        answers.append([json.dumps(ranked).encode()])
    return {"answer": np.array(answers, dtype=object)}


if __name__ == "__main__":
    port = int(sys.argv[1])
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=port,
        allow_grpc=False,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="score",
            infer_func=score,
            inputs=[Tensor(name="body", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(max_batch_size=16, batcher=DynamicBatcher()),
        )
        triton.serve()
