"""Training by others: the Trainer with accumulation, LoRA, checkpointing, devices, export."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from huggingface_models import (
    CAUSAL,
    TINY,
    built,
    checkpoint_activations,
    ragged,
    some_ids,
    tiny_config,
)
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from spade_model.huggingface import (
    LORA_TARGET_MODULES,
    SpadeEncoderModel,
    SpadeForCausalLM,
    SpadeForConditionalGeneration,
    SpadeForQuestionAnswering,
    SpadeForSequenceClassification,
    SpadeForTokenClassification,
)

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SEQ_2_SEQ_LM": (SpadeForConditionalGeneration, {}),
    "CAUSAL_LM": (SpadeForCausalLM, CAUSAL),
    "SEQ_CLS": (SpadeForSequenceClassification, {}),
    "TOKEN_CLS": (SpadeForTokenClassification, {}),
    "QUESTION_ANS": (SpadeForQuestionAnswering, {}),
}
EVERY_MODEL = pytest.mark.parametrize("task", MODELS)


def model_of(task: str) -> Any:
    model_class, changes = MODELS[task]
    return built(model_class, **changes)


def rows_of(task: str) -> list[dict[str, Tensor]]:
    """Four rows with labels, of which some have far fewer than others."""
    ids = some_ids(4, 12)
    rows = []
    for index in range(4):
        row = {"input_ids": ids[index], "attention_mask": torch.ones(12, dtype=torch.long)}
        if task == "SEQ_CLS":
            row["labels"] = torch.tensor(index % 2)
        elif task == "QUESTION_ANS":
            row["start_positions"], row["end_positions"] = torch.tensor(index), torch.tensor(9)
        else:
            labels = ids[index] % 2 if task == "TOKEN_CLS" else ids[index].clone()
            labels[2 + 3 * index :] = -100
            row["labels"] = labels
        rows.append(row)
    return rows


@EVERY_MODEL
def test_accumulation_changes_neither_loss_nor_step(task: str, tmp_path: Path) -> None:
    """One step on four rows, at once and one by one, under the Trainer of `transformers`."""
    pytest.importorskip("accelerate", reason="the Trainer of transformers needs accelerate")
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, default_data_collator

    found = []
    for at_once in (4, 1):
        model = model_of(task)
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(tmp_path / str(at_once)),
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=4 // at_once,
            max_steps=1,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.0,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Seq2SeqTrainer(
            model=model,
            args=arguments,
            train_dataset=rows_of(task),
            data_collator=default_data_collator,
        )
        loss = trainer.train().training_loss
        found.append((loss, {n: p.detach().clone() for n, p in model.named_parameters()}))
    (loss, weights), (accumulated_loss, accumulated_weights) = found
    assert accumulated_loss == pytest.approx(loss, rel=1e-4)
    fresh = dict(model_of(task).named_parameters())
    assert any(not torch.equal(weights[name], fresh[name]) for name in weights)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, accumulated_weights[name], atol=1e-5, rtol=1e-4)


@EVERY_MODEL
def test_lora_needs_no_names(task: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="LoRA needs peft")
    base = model_of(task)
    batch = {name: torch.stack([row[name] for row in rows_of(task)]) for name in rows_of(task)[0]}
    model = peft.get_peft_model(base, peft.LoraConfig(task_type=task, r=4))
    adapted = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" in n}
    assert adapted
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in adapted} <= set(
        LORA_TARGET_MODULES
    )
    assert not any("state_space" in name for name in adapted)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    before = model(**batch).loss
    for _ in range(5):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < before
    model.eval().save_pretrained(tmp_path)
    after = model(**batch).loss
    again = peft.PeftModel.from_pretrained(model_of(task), tmp_path)
    torch.testing.assert_close(again(**batch).loss, after)
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(**batch).loss, after, atol=1e-5, rtol=1e-4)
    if task in ("SEQ_2_SEQ_LM", "CAUSAL_LM"):
        assert model.generate(input_ids=batch["input_ids"], max_new_tokens=3).shape[0] == 4


def test_our_package_does_not_load_peft() -> None:
    """The default targets are told to a PEFT that is there, and to no other."""
    from spade_model.huggingface.adapters import name_lora_targets

    constants = sys.modules.pop("peft.utils.constants", None)
    try:
        name_lora_targets("spade")
        assert "peft.utils.constants" not in sys.modules
    finally:
        if constants is not None:
            sys.modules["peft.utils.constants"] = constants


@EVERY_MODEL
@pytest.mark.parametrize("reentrant", [False, True])
def test_computing_layers_again_changes_no_gradient(task: str, reentrant: bool) -> None:
    gradients = []
    batch = {name: torch.stack([row[name] for row in rows_of(task)]) for name in rows_of(task)[0]}
    for again in (False, True):
        model = model_of(task).train()
        if again:
            # The reentrant kind wants an input with a gradient.
            model.enable_input_require_grads()
            checkpoint_activations(model, {"use_reentrant": reentrant})
        calls = []
        encoder_or_decoder = model.get_input_embeddings(), *model.modules()
        layers = [m for m in encoder_or_decoder if type(m).__name__ == "SpadeLongLayer"]
        layers[0].mixing.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(**batch).loss.backward()
        assert len(calls) == (2 if again else 1)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    built(SpadeForConditionalGeneration).save_pretrained(folder)
    return folder


class TestLoading:
    @pytest.mark.parametrize("device_map", ["auto", "cpu"])
    def test_device_map(self, saved: Path, device_map: str) -> None:
        pytest.importorskip("accelerate", reason="device_map needs accelerate")
        plain = AutoModelForSeq2SeqLM.from_pretrained(saved)
        mapped = AutoModelForSeq2SeqLM.from_pretrained(saved, device_map=device_map)
        ids = some_ids(2, 15).to(mapped.device)
        found = mapped(input_ids=ids, labels=ids[:, :4]).logits.cpu()
        expected = plain(input_ids=ids.cpu(), labels=ids[:, :4].cpu()).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert mapped.lm_head.weight is mapped.model.shared.weight

    @pytest.mark.parametrize("way", ["disk", "memory", "some layers", "as memory allows"])
    def test_weights_that_are_elsewhere(self, saved: Path, tmp_path: Path, way: str) -> None:
        """Layers that are brought in when they are called: nobody reads a weight from outside."""
        accelerate = pytest.importorskip("accelerate", reason="offloading needs accelerate")
        plain = AutoModelForSeq2SeqLM.from_pretrained(saved)
        cpu, folder = torch.device("cpu"), str(tmp_path)
        if way == "disk":
            offloaded = accelerate.disk_offload(
                AutoModelForSeq2SeqLM.from_pretrained(saved), folder, cpu
            )
        elif way == "memory":
            offloaded = accelerate.cpu_offload(AutoModelForSeq2SeqLM.from_pretrained(saved), cpu)
        elif way == "some layers":
            places = {"model.shared": "cpu", "model.encoder": "disk", "model.decoder": "cpu"}
            offloaded = AutoModelForSeq2SeqLM.from_pretrained(
                saved, device_map=places | {"lm_head": "cpu"}, offload_folder=folder
            )
        else:
            offloaded = AutoModelForSeq2SeqLM.from_pretrained(
                saved, device_map="auto", max_memory={"cpu": "60KB"}, offload_folder=folder
            )
        state_space = [p for n, p in offloaded.named_parameters() if ".state_space." in n]
        assert state_space
        assert all(p.device.type == "meta" for p in state_space)
        ids = some_ids(2, 15)
        found = offloaded(input_ids=ids, labels=ids[:, :4]).logits
        assert torch.equal(found, plain(input_ids=ids, labels=ids[:, :4]).logits)
        generated = offloaded.generate(ids, max_new_tokens=4)
        assert torch.equal(generated, plain.generate(ids, max_new_tokens=4))

    def test_bfloat16_classifier_keeps_the_state_space(self, saved: Path) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.bfloat16)
        for name, tensor in model.state_dict().items():
            expected = torch.float32 if ".state_space." in name else torch.bfloat16
            assert tensor.dtype == expected, name
        ids, mask, _ = ragged([15, 9], "right")
        output = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1]))
        output.loss.backward()
        assert output.loss.isfinite()

    def test_a_head_of_its_own(self, saved: Path, tmp_path: Path) -> None:
        model, report = AutoModelForSeq2SeqLM.from_pretrained(
            saved, tie_word_embeddings=False, output_loading_info=True
        )
        assert report["missing_keys"] == {"lm_head.weight"}
        assert model.lm_head.weight is not model.model.shared.weight
        model.save_pretrained(tmp_path)
        again, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"]
        assert torch.equal(again.lm_head.weight, model.lm_head.weight)
        again.resize_token_embeddings(TINY["vocab_size"] + 3)
        assert again.lm_head.weight.shape == again.model.shared.weight.shape == (93, 32)

    def test_a_folder_without_weights_says_so(self, saved: Path, tmp_path: Path) -> None:
        """Also of the embedding, which the head shares."""
        from safetensors.torch import save_file

        (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
        save_file({"other": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
        model, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
        assert {name for name, _ in model.named_parameters()} <= report["missing_keys"]
        assert all(bool(p.isfinite().all()) for p in model.parameters())
        scale = built(SpadeForConditionalGeneration).model.shared.weight.std().item()
        assert model.model.shared.weight.std().item() == pytest.approx(scale, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"state_space": "ema", "attention": "chunk", "num_encoder_layers": 1}],
    ids=["s4", "ema in chunks"],
)
def test_export_of_the_encoder_for_any_length(changes: dict[str, Any]) -> None:
    model = SpadeEncoderModel(tiny_config(**changes)).eval()
    ids, mask, _ = ragged([33, 20], "right")
    rows, length = torch.export.Dim("rows", max=64), torch.export.Dim("length", min=2, max=4096)
    shape = {0: rows, 1: length}
    program = torch.export.export(
        model,
        (ids,),
        {"attention_mask": mask},
        dynamic_shapes={"input_ids": shape, "attention_mask": shape},
    )
    exported = program.module()
    for lengths in ([2, 1, 2], [33], [300, 7], [1500, 900]):
        ids, mask, _ = ragged(lengths, "right")
        with torch.no_grad():
            expected = model(ids, attention_mask=mask).last_hidden_state
            found = exported(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(found[mask > 0], expected[mask > 0], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "dynamic"), [("SEQ_CLS", False), ("SEQ_2_SEQ_LM", True), ("CAUSAL_LM", False)]
)
def test_export_by_the_exporter_of_transformers(task: str, dynamic: bool) -> None:
    """Of the shapes that are given, or of any; what generates step by step as well."""
    exporters = pytest.importorskip("transformers.exporters", reason="early 5.x has no exporters")
    exporter, model = exporters.DynamoExporter(), model_of(task)
    ids, mask, _ = ragged([9, 9], "left")  # What stands at padded places has no meaning.
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    options = exporters.DynamoConfig(dynamic=dynamic)
    if task == "SEQ_CLS":
        parts = {"model": (model, given)}
    else:
        from transformers.exporters.utils import decompose_for_generation

        parts = decompose_for_generation(model, given, multi_token_decode=dynamic)
    for module, inputs in parts.values():
        with torch.no_grad():
            expected = module(**copy.deepcopy(inputs)).logits
            exported = exporter.export(module, inputs, options)  # Takes out what is no input.
            program = getattr(exported, "program", exported)  # Which it is in 5.20.
            found = program.module()(**copy.deepcopy(inputs))["logits"]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
