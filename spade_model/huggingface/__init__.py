"""SPADE for `transformers` users: importing this package registers it with the Auto classes.

import spade_model.huggingface
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
"""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from spade_model.huggingface.causal_lm import SpadeForCausalLM
from spade_model.huggingface.classification import SpadeForSequenceClassification
from spade_model.huggingface.configuration import SpadePretrainedConfig
from spade_model.huggingface.modeling import (
    SpadeForConditionalGeneration,
    SpadePretrainedModel,
)
from spade_model.huggingface.tokenization import SpadeTokenizer

__all__ = [
    "SpadeForCausalLM",
    "SpadeForConditionalGeneration",
    "SpadeForSequenceClassification",
    "SpadePretrainedConfig",
    "SpadePretrainedModel",
    "SpadeTokenizer",
]

AutoConfig.register(SpadePretrainedConfig.model_type, SpadePretrainedConfig)
AutoModel.register(SpadePretrainedConfig, SpadePretrainedModel)
AutoModelForCausalLM.register(SpadePretrainedConfig, SpadeForCausalLM)
AutoModelForSeq2SeqLM.register(SpadePretrainedConfig, SpadeForConditionalGeneration)
AutoModelForSequenceClassification.register(SpadePretrainedConfig, SpadeForSequenceClassification)
AutoTokenizer.register(SpadePretrainedConfig, SpadeTokenizer)
