"""The evaluation part of a configuration: how often, on how much, under which objectives."""

from __future__ import annotations

from pydantic import Field

from data_pipeline.errors import DataError
from pretrain.data_settings import DataSettings, Name, ObjectiveSettings
from pretrain.errors import ConfigError
from pretrain.section import Positive, Section


class EvaluationSettings(Section):
    """Held-out denoising loss, of every set of `data.heldout` under every objective."""

    every_steps: Positive = 500
    """Steps between two evaluations; one is always made before the first and after the last."""
    samples: Positive = 64
    """Samples of each held-out set under each objective, always the same ones; of sets with fewer
    windows, all of them."""
    objectives: dict[Name, ObjectiveSettings] = Field(default_factory=dict)
    """Objectives to evaluate besides the one that is trained, by name, with inputs of
    `data.input_length_tokens` too, such as ``{continuation: {kind: prefix_lm}}``."""

    def check_lengths(self, data: DataSettings, max_target_length_tokens: int) -> None:
        """Make sure that the model's decoder is long enough for every objective.

        Args:
            data: The data of the run.
            max_target_length_tokens: Longest target of the model.

        Raises:
            ValueError: If it is not, or an objective's lengths are impossible.
        """
        for name, settings in self.objectives.items():
            try:
                target_tokens = data.make_objective(settings).target_length_tokens
            except DataError as error:
                raise ValueError(f"evaluation.objectives.{name}: {error}") from None
            if target_tokens > max_target_length_tokens:
                raise ValueError(
                    f"evaluation.objectives.{name} asks for up to {target_tokens} tokens, but "
                    f"model.max_target_length_tokens is {max_target_length_tokens}; make the "
                    "objective's targets shorter or raise the latter at the start of a run"
                )

    def check_data(self, data: DataSettings) -> None:
        """Make sure that tokenizer and data sets have what every objective needs.

        Args:
            data: The data of the run.

        Raises:
            ConfigError: If they have not.
        """
        for name, settings in self.objectives.items():
            try:
                data.check_objective(settings)
            except (ConfigError, DataError) as error:
                raise ConfigError(f"evaluation.objectives.{name}: {error}") from None
