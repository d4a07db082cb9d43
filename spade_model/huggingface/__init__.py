"""SPADE for `transformers` users: importing this package registers it with the Auto classes.

import spade_model.huggingface
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
"""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from spade_model.huggingface.adapters import LORA_TARGET_MODULES
from spade_model.huggingface.causal_lm import SpadeForCausalLM
from spade_model.huggingface.classification import (
    SpadeForSequenceClassification,
    SpadeForTokenClassification,
)
from spade_model.huggingface.configuration import SpadePretrainedConfig
from spade_model.huggingface.encoder import SpadeEncoderModel
from spade_model.huggingface.modeling import (
    SpadeForConditionalGeneration,
    SpadePretrainedModel,
)
from spade_model.huggingface.question_answering import SpadeForQuestionAnswering
from spade_model.huggingface.shared_inputs import part_of_all_processes
from spade_model.huggingface.standalone import write_standalone
from spade_model.huggingface.tokenization import SpadeTokenizer

__all__ = [
    "LORA_TARGET_MODULES",
    "SpadeEncoderModel",
    "SpadeForCausalLM",
    "SpadeForConditionalGeneration",
    "SpadeForQuestionAnswering",
    "SpadeForSequenceClassification",
    "SpadeForTokenClassification",
    "SpadePretrainedConfig",
    "SpadePretrainedModel",
    "SpadeTokenizer",
    "part_of_all_processes",
]

SpadePretrainedConfig.write_code = write_standalone
AutoConfig.register(SpadePretrainedConfig.model_type, SpadePretrainedConfig)
AutoModel.register(SpadePretrainedConfig, SpadePretrainedModel)
AutoModelForCausalLM.register(SpadePretrainedConfig, SpadeForCausalLM)
AutoModelForQuestionAnswering.register(SpadePretrainedConfig, SpadeForQuestionAnswering)
AutoModelForSeq2SeqLM.register(SpadePretrainedConfig, SpadeForConditionalGeneration)
AutoModelForSequenceClassification.register(SpadePretrainedConfig, SpadeForSequenceClassification)
AutoModelForTextEncoding.register(SpadePretrainedConfig, SpadeEncoderModel)
AutoModelForTokenClassification.register(SpadePretrainedConfig, SpadeForTokenClassification)
AutoTokenizer.register(SpadePretrainedConfig, SpadeTokenizer)
