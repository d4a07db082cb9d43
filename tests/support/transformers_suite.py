"""Our models under the common tests of `transformers`; run by `test_transformers_suite.py`.

To be collected by a pytest whose working directory is a checkout of `transformers`: `tests` below
is their package.
"""

from __future__ import annotations

import unittest
from typing import Any

from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask
from tests.test_training_mixin import TrainingTesterMixin
from transformers.models.auto import modeling_auto

from spade_model.huggingface import (
    SpadeEncoderModel,
    SpadeForCausalLM,
    SpadeForConditionalGeneration,
    SpadeForQuestionAnswering,
    SpadeForSequenceClassification,
    SpadeForTokenClassification,
    SpadePretrainedConfig,
    SpadePretrainedModel,
)

RADIUS_TOKENS = 4

SKIPPED = {
    "test_onnx_export": "state spaces convolve with an FFT, which the conversion to ONNX refuses",
}
"""What the beginning of a test's name says is not tested, and why. All else that is skipped skips
itself: it needs a GPU, another library, or a feature that our classes do not claim to have."""

# The suite knows what a class needs by its name alone.
for names, known in (
    (modeling_auto.MODEL_MAPPING_NAMES, ("SpadePretrainedModel", "SpadeEncoderModel")),
    (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "SpadeForCausalLM"),
    (
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "SpadeForConditionalGeneration",
    ),
    (modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, "SpadeForQuestionAnswering"),
    (
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "SpadeForSequenceClassification",
    ),
    (modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, "SpadeForTokenClassification"),
):
    names["spade"] = known


class SpadeModelTester:
    """Small configurations and inputs, as the mixins ask for them."""

    batch_size = 3
    seq_length = encoder_seq_length = decoder_seq_length = key_length = 11
    vocab_size = 90
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 2
    num_labels = 3
    is_training = True

    def __init__(self, parent: Any, encoder_layers: int, decoder_layers: int) -> None:
        self.parent = parent
        self.layers = (encoder_layers, decoder_layers)

    def get_config(self) -> SpadePretrainedConfig:
        return SpadePretrainedConfig(
            vocab_size=self.vocab_size,
            d_model=self.hidden_size,
            num_heads=self.num_attention_heads,
            head_dim=12,
            d_ff=48,
            num_encoder_layers=self.layers[0],
            num_decoder_layers=self.layers[1],
            state_dim=8,
            local_radius_tokens=RADIUS_TOKENS,
            max_target_length_tokens=64,
            num_labels=self.num_labels,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[SpadePretrainedConfig, dict[str, Any]]:
        config = self.get_config()
        shape = [self.batch_size, self.seq_length]
        inputs = {
            "input_ids": ids_tensor(shape, self.vocab_size - 2) + 2,
            "attention_mask": random_attention_mask(shape),
        }
        # What a padded token yields that has only padding in reach is not defined, and not the same
        # in a graph that was exported.
        inputs["attention_mask"][:, ::RADIUS_TOKENS] = 1
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids_tensor(shape, self.vocab_size - 2) + 2
            # Otherwise `generate` puts the start in front, and moves the mask by one; the common
            # test that goes on from a cache does not, and would compare two different masks.
            inputs["decoder_input_ids"][:, 0] = config.decoder_start_token_id
            inputs["decoder_attention_mask"] = random_attention_mask(shape)
        return config, inputs


class SpadeSuite(ModelTesterMixin):
    """What the three suites below share.

    The mixin for pipelines is left out, since it reads tiny models from the network.
    """

    test_resize_embeddings = True
    encoder_layers, decoder_layers = 2, 2

    def setUp(self) -> None:
        for name, reason in SKIPPED.items():
            if self._testMethodName.startswith(name):
                self.skipTest(reason)
        self.model_tester = SpadeModelTester(self, self.encoder_layers, self.decoder_layers)

    def test_config(self) -> None:
        layers = {
            "num_encoder_layers": self.encoder_layers,
            "num_decoder_layers": self.decoder_layers,
        }
        tester = ConfigTester(self, config_class=SpadePretrainedConfig, d_model=40, **layers)
        tester.run_common_tests()


class EncoderDecoderTest(SpadeSuite, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (SpadePretrainedModel, SpadeForConditionalGeneration)
    is_encoder_decoder = True


class EncoderTest(SpadeSuite, unittest.TestCase):
    all_model_classes = (
        SpadeEncoderModel,
        SpadeForSequenceClassification,
        SpadeForTokenClassification,
        SpadeForQuestionAnswering,
    )
    decoder_layers = 0


class CausalLanguageModelTest(
    SpadeSuite, TrainingTesterMixin, GenerationTesterMixin, unittest.TestCase
):
    all_model_classes = (SpadeForCausalLM,)
    encoder_layers = 0

    def _get_attention_shape(self, batch_size: int, seq_length: int, config: Any) -> Any:
        """The shapes of keys and values: the cache holds what is in reach, and no more."""
        kept_tokens = min(seq_length, RADIUS_TOKENS + 1)
        return super()._get_attention_shape(batch_size, kept_tokens, config)
