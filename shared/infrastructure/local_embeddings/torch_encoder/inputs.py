"""What a pass needs beside the weights, as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.infrastructure.local_embeddings.tokens.shares import token_shares
from shared.infrastructure.local_embeddings.tokens.token_batch import TokenBatch, positions_of
from shared.infrastructure.local_embeddings.torch_encoder.architecture import Architecture
from shared.infrastructure.local_embeddings.torch_encoder.pooling import pooled_rows


@dataclass(frozen=True, slots=True, eq=False)
class PassInputs:
    """The inputs of one pass over n texts of t tokens.

    Attributes:
        lengths: Tokens of each text, int64 (n,).
        offsets: Where each text begins and the last one ends, int32 (n + 1,).
        ids: Token ids, int32 (t,).
        positions: Position of each token as the model counts, int32 (t,).
        rows: Token that the pooling reads in the place of each, int32 (t,).
        shares: Share of each token in its text's vector, float32 (t,); ones for `max`.
    """

    lengths: NDArray[np.int64]
    offsets: NDArray[np.int32]
    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    rows: NDArray[np.int32]
    shares: NDArray[np.float32]


def inputs_of(batch: TokenBatch, architecture: Architecture, pooling: str) -> PassInputs:
    """Return the inputs of a pass over a batch; `pooling` is one of `POOLINGS`."""
    lengths, offsets = batch.lengths, batch.offsets
    is_max = pooling == "max"
    return PassInputs(
        lengths=lengths,
        offsets=offsets.astype(np.int32),
        ids=batch.ids.astype(np.int32),
        positions=_positions(batch, architecture),
        rows=pooled_rows(lengths, batch.prompt_tokens if is_max else 0),
        shares=np.ones(len(batch.ids), np.float32)
        if is_max
        else token_shares(lengths, pooling, batch.prompt_tokens),
    )


def _positions(batch: TokenBatch, architecture: Architecture) -> NDArray[np.int32]:
    if architecture.counts_positions_from_padding:
        real = batch.ids != architecture.pad_id
        count = np.concatenate([[0], np.cumsum(real)])
        within = count[1:] - np.repeat(count[batch.offsets[:-1]], batch.lengths)
        positions: NDArray[np.int64] = within * real + architecture.pad_id
    else:
        positions = positions_of(batch.lengths)
    return positions.astype(np.int32)
