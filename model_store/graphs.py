"""Three graphs opened as one model, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model_store.bound_session import BoundSession
from model_store.compiled_head import CompiledHead
from model_store.device import CPU, Device
from model_store.errors import GoldenMismatchError, GraphInvalidError
from model_store.head_weights import HeadWeights
from model_store.history import FloatArray, IntArray, blocks_of
from model_store.manifest import GRAPHS, Layout, Tensor, graph_tensors

_DTYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs and the trainer's answers: G users, K candidates each.

    Attributes:
        lengths: [G] clicks of each user, 0 to the history length.
        history_features: [sum of lengths, F], users one after another, oldest click first.
        history_categories: [sum of lengths].
        candidate_features: [G, K, F].
        candidate_categories: [G, K].
        logits: [G, K].
    """

    lengths: IntArray
    history_features: FloatArray
    history_categories: IntArray
    candidate_features: FloatArray
    candidate_categories: IntArray
    logits: FloatArray


def click_probabilities(logits: FloatArray) -> npt.NDArray[np.float64]:
    """Turn logits into probabilities in [0, 1], in double precision so that order survives."""
    # By tanh, which does not overflow however large the logit.
    return 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))


class Model:
    """Three graphs of one version, ready to answer. Safe to call from several threads.

    On a CPU the score head runs compiled where that is built and the graph brings its numbers along.

    Args:
        graphs: ONNX bytes by graph name.
        layout: the sizes the graphs must have.
        device: where they run.

    Raises:
        GraphInvalidError: a graph does not load, its tensors are not the layout's, or the head's
            numbers are not.
    """

    def __init__(
        self,
        graphs: Mapping[str, bytes],
        layout: Layout,
        *,
        device: Device = CPU,
    ) -> None:
        self.layout = layout
        self._sessions = {name: _session(name, graphs[name], device) for name in GRAPHS}
        bind = device.bind or device.kind == "cuda"
        head = self._sessions["score_head"]
        self._bound_head = BoundSession(head, device.kind) if bind else None
        for name, expected in graph_tensors(layout).items():
            session = self._sessions[name]
            _check_tensors(f"{name} inputs", session.get_inputs(), expected.inputs)
            _check_tensors(f"{name} outputs", session.get_outputs(), expected.outputs)
        weights = HeadWeights.from_metadata(head.get_modelmeta().custom_metadata_map, layout)
        bits = 0 if bind else device.head_bits
        self.compiled_head = CompiledHead.of(weights, bits) if weights else None
        """What scores instead of the graph."""

    def encode_videos(self, features: FloatArray, categories: IntArray) -> FloatArray:
        """Turn videos into rows: features [N, F], categories [N] -> [N, R]."""
        return self._run("video_encoder", features=features, category=categories)

    def profiles(self, history_rows: FloatArray, history_lengths: IntArray) -> FloatArray:
        """Profile users: rows in blocks [U, K, S, R], lengths [U] -> [U, K, P].

        A user whose clicks fill less than K blocks may have the others cut off.
        """
        return self._run("user_profile", history_rows=history_rows, history_length=history_lengths)

    def profile(self, rows: FloatArray) -> FloatArray:
        """Profile one user from the rows of the history, oldest first: [n, R] -> [K, P]."""
        blocks = blocks_of(rows, self.layout.block_size, self.layout.filled_blocks(len(rows)))
        return self.profiles(blocks[None], np.array([len(rows)], np.int64))[0]

    def logits(self, profile: FloatArray, candidate_rows: FloatArray) -> FloatArray:
        """Score candidates for one user: profile [K, P], rows [N, C or R] -> logits [N]."""
        if self.compiled_head is not None:
            return self.compiled_head.logits(profile, candidate_rows)
        return self.tile_logits(profile[None], candidate_rows[None])[0]

    def tile_logits(self, profiles: FloatArray, candidate_rows: FloatArray) -> FloatArray:
        """Score tiles of one user each: profiles [T, K, P], rows [T, M, C or R] -> [T, M]."""
        if self.compiled_head is not None:
            score = self.compiled_head.logits
            logits = np.empty(candidate_rows.shape[:2], np.float32)
            for tile, (profile, rows) in enumerate(zip(profiles, candidate_rows, strict=True)):
                logits[tile] = score(profile, rows)
            return logits
        rows = np.ascontiguousarray(candidate_rows[..., : self.layout.candidate_dim])
        if self._bound_head is not None and rows.size:
            inputs = {"user_profile": profiles, "candidate_rows": rows}
            return self._bound_head.run(inputs, rows.shape[:2])
        return self._run("score_head", user_profile=profiles, candidate_rows=rows)

    def prove(self, golden: Golden, *, tolerance: float) -> float:
        """Replay golden cases and return the largest deviation of a logit.

        Raises:
            GoldenMismatchError: it is above ``tolerance``, or not a number.
        """
        worst, start = 0.0, 0
        for user, length in enumerate(golden.lengths.tolist()):
            stop = start + length
            rows = self.encode_videos(
                golden.history_features[start:stop], golden.history_categories[start:stop]
            )
            candidates = self.encode_videos(
                golden.candidate_features[user], golden.candidate_categories[user]
            )
            logits = self.logits(self.profile(rows), candidates)
            deviation = float(np.max(np.abs(logits - golden.logits[user])))
            # Written so that NaN fails, too.
            if not deviation <= tolerance:
                raise GoldenMismatchError(
                    f"golden user {user} ({length} clicks): a logit is off by {deviation:.3g}, "
                    f"allowed is {tolerance:.3g}; this device does not run the published model"
                )
            worst, start = max(worst, deviation), stop
        return worst

    def _run(self, name: str, **inputs: FloatArray | IntArray) -> FloatArray:
        result: FloatArray = self._sessions[name].run(None, inputs)[0]
        return result


def _session(name: str, graph: bytes, device: Device) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # One thread a session and many request threads: no gain from more at these sizes, and
    # spinning burns a core between requests.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(graph, options, providers=device.providers())
    # ONNX Runtime's own exceptions share no base but Exception.
    except Exception as exc:
        raise GraphInvalidError(f"{name}.onnx cannot be loaded: {exc}") from exc
    device.check(session.get_providers())
    return session


def _check_tensors(what: str, actual: Sequence[ort.NodeArg], expected: Sequence[Tensor]) -> None:
    found = [(t.name, t.type, [d if isinstance(d, int) else None for d in t.shape]) for t in actual]
    wanted = [
        (t.name, _DTYPES[t.dtype], [d if isinstance(d, int) else None for d in t.shape])
        for t in expected
    ]
    if found != wanted:
        raise GraphInvalidError(f"{what} are {found}, the manifest says {wanted}")
