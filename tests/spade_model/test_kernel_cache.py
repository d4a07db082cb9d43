"""Kernels are kept while their parameters stay, and never longer."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable

import pytest
import torch
from mixers import EVERY_KIND, make_mixer
from torch import Tensor

from spade_model.state_space.mixer import SequenceMixer

HIDDEN = torch.randn(1, 12, 6)
FROZEN_KINDS = pytest.mark.parametrize("kind", ["s4", "s4d_lin"])


def count_kernels(mixer: SequenceMixer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all kernels that are computed from now on."""
    lengths: list[int] = []
    compute = mixer.compute_kernel

    def counted(length: int) -> Tensor:
        lengths.append(length)
        return compute(length)

    monkeypatch.setattr(mixer, "compute_kernel", counted)
    return lengths


def fresh_output(mixer: SequenceMixer) -> Tensor:
    """What a mixer of the same weights gives that never kept anything."""
    other = copy.deepcopy(mixer)
    return other(HIDDEN.to(other.D.dtype), None).detach()


@FROZEN_KINDS
def test_a_frozen_kernel_is_computed_once_even_in_training(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer = make_mixer(kind, causal=False, trainable_state_space=("D",)).train()
    lengths = count_kernels(mixer, monkeypatch)
    for _ in range(3):
        hidden = HIDDEN.clone().requires_grad_()
        mixer(hidden, None).sum().backward()
        with torch.no_grad():
            mixer.D.add_(0.1)
    assert lengths == [12]
    assert torch.equal(mixer(HIDDEN, None), fresh_output(mixer))


@EVERY_KIND
def test_a_learned_kernel_is_kept_only_in_evaluation_without_gradients(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer = make_mixer(kind, causal=False)
    lengths = count_kernels(mixer, monkeypatch)
    for _ in range(2):
        mixer(HIDDEN, None)
    with torch.no_grad():
        for _ in range(2):
            mixer(HIDDEN, None)
    mixer.eval()
    for _ in range(2):
        mixer(HIDDEN, None)
    assert len(lengths) == 6
    with torch.no_grad():
        for _ in range(3):
            mixer(HIDDEN, None)
    assert len(lengths) == 7
    output = mixer(HIDDEN, None)
    assert output.requires_grad


def test_two_lengths_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = make_mixer("s4", causal=False, trainable_state_space=())
    lengths = count_kernels(mixer, monkeypatch)
    for length in (12, 7, 12, 7, 12, 3, 12, 7):
        mixer(HIDDEN[:, :length], None)
    assert lengths == [12, 7, 3, 7]


def load_others(mixer: SequenceMixer) -> None:
    other = {name: x + 0.1 for name, x in mixer.state_dict().items()}
    mixer.load_state_dict(other)


def assign_others(mixer: SequenceMixer) -> None:
    other = {name: x + 0.1 for name, x in mixer.state_dict().items()}
    mixer.load_state_dict(other, assign=True)


def write_in_place(mixer: SequenceMixer) -> None:
    with torch.no_grad():
        for x in mixer.state_dict().values():
            x.add_(0.1)


def write_in_place_in_training(mixer: SequenceMixer) -> None:
    mixer.train()
    write_in_place(mixer)
    mixer.eval()


def write_data_in_training(mixer: SequenceMixer) -> None:
    mixer.train()
    for x in (*mixer.parameters(), *mixer.buffers()):
        x.data.add_(0.1)
    mixer.eval()


def write_data_after_a_training_step_in_evaluation_mode(mixer: SequenceMixer) -> None:
    mixer(HIDDEN, None).sum().backward()
    for x in mixer.parameters():
        x.data.add_(0.1)


def replace_data(mixer: SequenceMixer) -> None:
    for x in (*mixer.parameters(), *mixer.buffers()):
        x.data = x.data + 0.1


def replace_tensors(mixer: SequenceMixer) -> None:
    for group in (mixer._parameters, mixer._buffers):
        for name, x in group.items():
            group[name] = type(x)(x.detach() + 0.1)


def write_data_and_say_so(mixer: SequenceMixer) -> None:
    for x in (*mixer.parameters(), *mixer.buffers()):
        x.data.add_(0.1)
    mixer.forget_kernels()


def draw_again(mixer: SequenceMixer) -> None:
    torch.manual_seed(5)
    mixer.initialize()


def move_to_float64_and_write(mixer: SequenceMixer) -> None:
    mixer.double()
    write_in_place(mixer)
    mixer.float()


CHANGES = [
    load_others,
    assign_others,
    write_in_place,
    write_in_place_in_training,
    write_data_in_training,
    replace_data,
    replace_tensors,
    write_data_and_say_so,
    draw_again,
    move_to_float64_and_write,
]


@EVERY_KIND
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights_are_never_answered_from_memory(
    kind: str, frozen: bool, change: Callable[[SequenceMixer], None]
) -> None:
    learned = () if frozen else ("C", "D", "log_dt")
    mixer = make_mixer(kind, causal=True, trainable_state_space=learned).eval()
    with torch.no_grad():
        before = mixer(HIDDEN, None)
        kernel, state = mixer.kernel(12), mixer.initial_state(1)
        stepped, _ = mixer.step(HIDDEN[:, 0], state)
    change(mixer)
    with torch.no_grad():
        after = mixer(HIDDEN, None)
        assert torch.equal(after, fresh_output(mixer))
        assert not torch.equal(after, before)
        assert not torch.equal(mixer.kernel(12), kernel)
        again, _ = mixer.step(HIDDEN[:, 0], state)
        torch.testing.assert_close(again, after[:, 0], rtol=1e-5, atol=1e-5)
        assert not torch.equal(again, stepped)


@EVERY_KIND
def test_training_in_evaluation_mode_is_noticed(kind: str) -> None:
    mixer = make_mixer(kind, causal=True).eval()
    with torch.no_grad():
        mixer(HIDDEN, None)
    write_data_after_a_training_step_in_evaluation_mode(mixer)
    with torch.no_grad():
        assert torch.equal(mixer(HIDDEN, None), fresh_output(mixer))


@EVERY_KIND
def test_an_optimizer_between_evaluations(kind: str) -> None:
    mixer = make_mixer(kind, causal=False)
    optimizer = torch.optim.AdamW(mixer.parameters(), lr=0.1)
    for _ in range(3):
        mixer.train()
        mixer(HIDDEN, None).square().sum().backward()
        optimizer.step()
        mixer.eval()
        with torch.no_grad():
            assert torch.equal(mixer(HIDDEN, None), fresh_output(mixer))


@FROZEN_KINDS
def test_another_precision_computes_anew(kind: str) -> None:
    mixer = make_mixer(kind, causal=True, trainable_state_space=())
    mixer(HIDDEN, None)
    mixer.to(torch.float64)
    output = mixer(HIDDEN.double(), None)
    assert output.dtype == mixer.kernel(12).dtype == torch.float64
    assert torch.equal(output, fresh_output(mixer))


@FROZEN_KINDS
def test_what_inference_mode_keeps_serves_training(kind: str) -> None:
    mixer = make_mixer(kind, causal=False, trainable_state_space=("D",))
    with torch.inference_mode():
        mixer(HIDDEN, None)
    hidden = HIDDEN.clone().requires_grad_()
    mixer(hidden, None).sum().backward()
    assert hidden.grad is not None


@FROZEN_KINDS
def test_a_module_built_in_inference_mode_works(kind: str) -> None:
    with torch.inference_mode():
        mixer = make_mixer(kind, causal=True, trainable_state_space=())
        assert torch.equal(mixer(HIDDEN, None), mixer(HIDDEN, None))


@FROZEN_KINDS
def test_nothing_kept_is_saved_copied_or_pickled(kind: str) -> None:
    mixer = make_mixer(kind, causal=True, trainable_state_space=())
    names = set(mixer.state_dict())
    empty = io.BytesIO()
    torch.save(mixer, empty)
    expected = mixer(torch.randn(1, 5000, 6), None).shape
    output = mixer(HIDDEN, None)
    assert set(mixer.state_dict()) == names
    full = io.BytesIO()
    torch.save(mixer, full)
    assert full.tell() <= empty.tell() + 500
    full.seek(0)
    # The bytes are those written above: whole modules travel as pickles, to worker processes.
    for other in (copy.deepcopy(mixer), torch.load(full, weights_only=False)):
        assert torch.equal(other(HIDDEN, None), output)
        assert other(torch.randn(1, 5000, 6), None).shape == expected
        with torch.no_grad():
            for x in other.buffers():
                x.add_(0.1)
        assert torch.equal(other(HIDDEN, None), fresh_output(other))
        assert torch.equal(mixer(HIDDEN, None), output)


@EVERY_KIND
def test_no_graph_is_kept_alive(kind: str) -> None:
    mixer = make_mixer(kind, causal=True, trainable_state_space=("D",))
    hidden = HIDDEN.clone().requires_grad_()
    output = mixer(hidden * 2, None)
    kept = weakref.ref(output.grad_fn)
    assert not mixer.kernel(12).requires_grad or kind == "ema"
    del output
    gc.collect()
    assert kept() is None
