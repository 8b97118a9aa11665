"""One way to score impressions with a network; every history is profiled once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from model_store import FloatArray
from training.batches import Batch, Policy, VideoTable
from training.by_length import Part, logits_by_length
from training.config import RunConfig
from training.errors import DataError
from training.examples import Examples
from training.histories import ClickHistories
from training.interactions import ClickLog, Impressions
from training.metrics import evaluate_lists, evaluate_scores
from training.models import (
    PERSONAL_MODELS,
    HistoryNetwork,
    Network,
    PersonalNetwork,
    build_baseline,
)
from training.models.lstm import Lstm
from training.models.lstm_attention import LstmAttention
from training.models.thacil import Thacil, ThacilShape
from training.models.thacil_shared import (
    Windows,
    can_share,
    score_runs,
    shared_logits,
    shared_profile,
)

_ROWS_PER_BATCH = 8192
# From here on a loop over histories costs less than gathering a profile for every row.
_LONG_RUN = 16
_RUN_ROWS = 1024


def build_network(
    config: RunConfig, *, feature_dim: int, num_categories: int, num_users: int = 0
) -> Network:
    """Build an untrained network of a configuration for a log of these sizes."""
    net = config.network
    shape = ThacilShape(
        feature_dim=feature_dim,
        num_categories=num_categories,
        item_dim=net.item_dim,
        category_dim=net.category_dim,
        num_heads=net.num_heads,
        num_blocks=net.num_blocks,
        block_size=net.block_size,
        hidden_dim=net.hidden_dim,
        interaction=net.interaction,
        block_age=net.block_age,
    )

    def thacil() -> Thacil:
        return Thacil(shape, dropout=net.dropout, hidden_dropout=net.hidden_dropout)

    if config.model == "thacil":
        return thacil()
    return build_baseline(
        config.model,
        thacil=thacil,
        num_users=num_users,
        dropout=net.dropout,
        hidden_dropout=net.hidden_dropout,
    )


def forward(network: Network, batch: Batch) -> torch.Tensor:
    """Score a batch: logits [N], in the order of ``batch.rows``."""
    videos = network.embed(batch.features, batch.categories)
    candidates = videos.index_select(0, batch.candidate)
    logits: torch.Tensor
    if isinstance(network, PersonalNetwork):
        logits = network(batch.user_ids, candidates)
    elif isinstance(network, Thacil) and can_share(network):
        windows = Windows(batch.clicks, batch.group, batch.first, batch.lengths)
        logits = shared_logits(network, videos, windows, batch.user, candidates)
    elif isinstance(network, Lstm | LstmAttention) and network.training:
        windows = Windows(batch.clicks, batch.group, batch.first, batch.lengths)
        logits = _recurrent_logits(
            network, network.shared_profile(videos, windows), batch, candidates
        )
    else:
        logits = _padded_logits(network, videos, batch, candidates)
    return logits


def _padded_logits(
    network: HistoryNetwork, videos_VD: Tensor, batch: Batch, candidates_ND: Tensor
) -> Tensor:
    """Score by histories that are padded, no further than the longest of their part."""
    history_UL = batch.history

    def logits_of(part: Part) -> Tensor:
        history = history_UL[:, : batch.padded(part.longest)].index_select(0, part.users)
        clicks = functional.embedding(history, videos_VD)
        lengths = batch.lengths.index_select(0, part.users)
        logits: Tensor = network(
            clicks, lengths, part.user, candidates_ND.index_select(0, part.rows)
        )
        return logits

    return logits_by_length(batch.lengths, batch.user, logits_of)


def _recurrent_logits(
    network: Lstm | LstmAttention, profile: Tensor, batch: Batch, candidates_ND: Tensor
) -> Tensor:
    """Score by states: by the last of each history, or by all of them, which differ in number."""
    if isinstance(network, Lstm):
        return network.score(profile.index_select(0, batch.user), candidates_ND)

    def logits_of(part: Part) -> Tensor:
        states = profile.index_select(0, part.users)[:, : max(1, part.longest)]
        return network.score(
            states.index_select(0, part.user), candidates_ND.index_select(0, part.rows)
        )

    return logits_by_length(batch.lengths, batch.user, logits_of)


def history_policy(config: RunConfig) -> Policy:
    """Say which clicks a run's examples carry: those that its model reads."""
    return "none" if config.model in PERSONAL_MODELS else config.data.history


def score(network: Network, examples: Examples) -> FloatArray:
    """Score every impression: logits [n], in the order of the log.

    Raises:
        DataError: the log's content features are not as wide as those trained on.
    """
    _check_width(network, examples)
    logits = np.empty(len(examples), np.float32)
    network.eval()
    with torch.inference_mode():
        if isinstance(network, Thacil) and examples.rows_per_history >= _LONG_RUN:
            return _score_runs(network, examples, logits)
        device = next(network.parameters()).device
        for batch in examples.sequential(_ROWS_PER_BATCH):
            logits[batch.rows] = forward(network, batch.to(device)).cpu().numpy()
    return logits


def _check_width(network: Network, examples: Examples) -> None:
    embed = network if isinstance(network, Thacil) else network.embed
    projection = embed.item_projection
    if projection.in_features != examples.feature_dim:
        raise DataError(
            f"the run was trained on content features {projection.in_features} wide, those of the "
            f"log are {examples.feature_dim} wide: take features that were extracted the same way"
        )


def _score_runs(network: Thacil, examples: Examples, logits: FloatArray) -> FloatArray:
    """Embed every candidate once, profile every history once; the rest per pair."""
    table = np.empty((examples.num_candidates, network.shape.embedding_dim), np.float32)
    device = next(network.parameters()).device
    for items, features, categories in examples.candidate_contents(_ROWS_PER_BATCH):
        table[items] = network.embed(features.to(device), categories.to(device)).cpu().numpy()
    for cpu_batch in examples.sequential(
        _ROWS_PER_BATCH, with_candidates=False, together=_RUN_ROWS
    ):
        batch = cpu_batch.to(device)
        windows = Windows(batch.clicks, batch.group, batch.first, batch.lengths)
        videos = network.embed(batch.features, batch.categories)
        profile = shared_profile(network, videos, windows)
        runs = torch.bincount(batch.user, minlength=len(batch.lengths)).tolist()
        candidates = torch.from_numpy(table[cpu_batch.candidate.numpy()]).to(device)
        logits[batch.rows] = score_runs(network, profile, runs, candidates).cpu().numpy()
    return logits


def train_examples(config: RunConfig, log: ClickLog, impressions: Impressions) -> Examples:
    """Impressions of the training videos, with the clicks that each may see as history."""
    return _examples(config, log, impressions, None)


def validation_examples(
    config: RunConfig, log: ClickLog, impressions: Impressions, held: npt.NDArray[np.bool_]
) -> Examples:
    """Impressions of held-out training videos, with the clicks that each may see as history.

    What the ``paper`` policy shows, all clicks of the user, would hold the very click that is asked
    for. In the test file it never does, as its videos are others; so here it shows the
    clicks on videos that are not held out.

    Args:
        config: names the policy.
        log: whose training half is split.
        impressions: of the validation part.
        held: [videos], true for those held out.
    """
    histories = None
    if history_policy(config) == "paper":
        histories = log.indexed()[1].histories.without(held)
    return _examples(config, log, impressions, None, histories)


def test_examples(config: RunConfig, log: ClickLog, impressions: Impressions) -> Examples:
    """Impressions of the test videos, with the clicks on training videos as history.

    Raises:
        DataError: the log holds no features of test videos.
    """
    if log.test_features is None:
        raise DataError("the log has no test_cover_image_feature.npy: nothing to score")
    videos = VideoTable.from_log(log.test_features, impressions, log.num_categories)
    return _examples(config, log, impressions, videos)


def _examples(
    config: RunConfig,
    log: ClickLog,
    impressions: Impressions,
    candidates: VideoTable | None,
    histories: ClickHistories | None = None,
) -> Examples:
    """Put impressions over a table of candidates and clicks; those of the log when not given."""
    log, index = log.indexed()
    categories = np.where(index.categories < 0, log.num_categories, index.categories)
    videos = VideoTable(log.train_features, categories, log.num_categories)
    return Examples(
        impressions,
        videos if candidates is None else candidates,
        index.histories if histories is None else histories,
        videos,
        policy=history_policy(config),
        history_length=config.network.num_blocks * config.network.block_size,
        block_size=config.network.block_size,
    )


def measure(impressions: Impressions, logits: FloatArray) -> dict[str, float]:
    """Per-user AUC (eq. 11), impression-weighted AUC, global AUC, log loss and calibration."""
    return evaluate_scores(impressions.user_ids, impressions.labels, logits)


def measure_lists(impressions: Impressions, logits: FloatArray) -> dict[str, float]:
    """Precision, recall, F and NDCG at 10..100, in the standard and the reference convention."""
    return evaluate_lists(impressions.user_ids, impressions.labels, logits)


# pytest would collect the function by its name otherwise.
test_examples.__test__ = False  # type: ignore[attr-defined]
