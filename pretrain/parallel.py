"""What the ranks of a run share out beside samples and weights, as a part of the configuration."""

from __future__ import annotations

from pretrain.section import Positive, Section
from spade_model.config import SpadeConfig
from spade_model.context_parallel.checks import check_context


class ParallelSettings(Section):
    """How single samples are spread over ranks."""

    context: Positive = 1
    """Ranks that share the input of each sample, each with a part of its tokens: neighbours by
    number, so that those of one machine come together. The number of processes is a multiple."""

    def check(self, model: SpadeConfig, least_tokens: int, *, compiled: bool) -> None:
        """Check that inputs can be cut so.

        Args:
            model: The network.
            least_tokens: Of the shortest windows of the run.
            compiled: Whether the layers are compiled.

        Raises:
            ValueError: They cannot: field, value, remedy.
        """
        try:
            check_context(model, self.context, least_tokens)
        except ValueError as error:
            raise ValueError(f"parallel.context {self.context}: {error}") from None
        if self.context > 1 and compiled:
            raise ValueError(
                f"parallel.context {self.context} does not go with train.compile: layers that talk "
                "to other ranks are not compiled; set train.compile: false"
            )
