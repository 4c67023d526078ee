"""The scores of each expert, in a scores file of a mixture of experts.

The dataset `expert_scores` is `[N, L, E, D]` float32: by sample, layer, expert, and row of the expert's `down_proj`. A
token goes through a few of the experts, so most of it is zeros; each expert's scores are a chunk of their own, and
chunks of zeros alone are not stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import h5py
import numpy as np
from numpy.typing import NDArray

from loki.errors import LokiError

NAME = "expert_scores"
_MOST_EXPERTS = 2**14  # of a layer; today's models have up to 512


@dataclass(frozen=True)
class ExpertScores:
    """The scores of the experts that have any, of some samples.

    Attributes:
        experts: number of experts E of a layer; 0 where no scores per expert were asked for.
        places: `[m, 3]`; sample, layer and expert of each.
        scores: `[m, D]` float32.
    """

    experts: int
    places: NDArray[np.int64]
    scores: NDArray[np.float32]

    @classmethod
    def none(cls, hidden: int) -> Self:
        """No scores per expert."""
        return cls(0, np.empty((0, 3), np.int64), np.empty((0, hidden), np.float32))

    @classmethod
    def of(cls, samples: Sequence[dict[int, NDArray[np.float32]]]) -> Self:
        """What stands in `[E, D]` by layer, for each sample."""
        layers = [(sample, layer, own) for sample, by_layer in enumerate(samples) for layer, own in by_layer.items()]
        places = [
            (sample, layer, int(expert)) for sample, layer, own in layers for expert in np.flatnonzero(own.any(axis=1))
        ]
        return cls(
            experts=max(len(own) for _, _, own in layers),
            places=np.array(places, np.int64).reshape(-1, 3),
            scores=np.stack([samples[sample][layer][expert] for sample, layer, expert in places])
            if places
            else np.empty((0, layers[0][2].shape[1]), np.float32),
        )

    def check_finite(self, ids: Sequence[str], *, origin: str) -> None:
        """Check the scores of the samples `ids`.

        Raises:
            LokiError: if one is NaN or infinite; the text names sample, layer and expert.
        """
        wrong = np.flatnonzero(~np.isfinite(self.scores).all(axis=-1))
        if wrong.size:
            sample, layer, expert = self.places[wrong[0]].tolist()
            raise LokiError(
                f"{origin}: sample {ids[sample]}, layer {layer}, expert {expert}: a score is NaN or infinite: "
                "analyse that sample again, in float32 if it was half precision"
            )

    @classmethod
    def joined(cls, parts: Sequence[Self], sizes: Sequence[int], order: NDArray[np.intp]) -> Self:
        """The parts of several groups of samples, one after another, then brought into another order.

        Args:
            parts: of each group.
            sizes: number of samples of each group.
            order: which of all the samples comes first, second, ...
        """
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        starts = np.cumsum([0, *sizes[:-1]])
        places = np.concatenate(
            [part.places + np.array([start, 0, 0]) for part, start in zip(parts, starts, strict=True)]
        )
        places[:, 0] = rank[places[:, 0]]
        return cls(
            experts=max(part.experts for part in parts),
            places=places,
            scores=np.concatenate([part.scores for part in parts]),
        )


def expert_scores_dataset(file: h5py.File, shape: tuple[int, int, int]) -> h5py.Dataset | None:
    """The dataset of a file whose scores are `[N, L, D]`; None if it has none.

    Raises:
        LokiError: if it does not belong to them.
    """
    link = file.get(NAME, getlink=True)
    if link is None:
        return None
    found = file.get(NAME)
    samples, layers, hidden = shape
    fits = (
        isinstance(link, h5py.HardLink)
        and isinstance(found, h5py.Dataset)
        and not (found.is_virtual or found.external)
        and found.dtype == np.float32
        and found.ndim == 4
        and found.shape == (samples, layers, found.shape[2], hidden)
        and 0 < found.shape[2] <= _MOST_EXPERTS
        and found.chunks == (1, 1, 1, hidden)
    )
    if not fits:
        raise LokiError(
            f"scores file {file.filename}: {NAME} is not [samples, layers, experts, hidden], with a chunk for each "
            "expert: it is damaged: analyse again, or copy it again"
        )
    return found
