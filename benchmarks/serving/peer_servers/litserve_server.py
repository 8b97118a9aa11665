"""LitServe: a LitAPI with one worker process, as its documentation shows."""

from __future__ import annotations

import sys
from typing import Any

import litserve

from benchmarks.serving.peer_servers.scorer import Scorer, ids_of


class Api(litserve.LitAPI):
    """Decodes, predicts, encodes."""

    def setup(self, device: str) -> None:  # noqa: ARG002  its interface
        """Open the model."""
        self.scorer = Scorer()

    def decode_request(self, request) -> tuple[str, list[str]]:  # noqa: ANN001  it reads JSON then
        """Take the user and the candidates."""
        return request["user_id"], ids_of(request["candidates"])

    def predict(self, x: tuple[str, list[str]]) -> dict[str, Any]:
        """Rank."""
        return self.scorer.score(*x)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Answer as it is."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Api(api_path="/score"), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False
    )
