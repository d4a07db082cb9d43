"""Parity with the published modules: values and gradients, in float32 and float64.

The golden folder states its own rule: float32 within 3x of the larger of 2e-6 and what the
published float32 run deviates from float64; float64 within 1e-9, or 1e-6 where the reference is
stored as float32.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from spade_model import published
from spade_model.cache import DecoderCache
from spade_model.encoder import Encoder
from spade_model.fft_convolution import fft_convolution
from spade_model.hippo import hippo_legs, normal_plus_low_rank_legs
from spade_model.layers import GlobalLocalMixing
from spade_model.local_attention import local_attention, local_windows, window_bias
from spade_model.relative_position import relative_position_bucket
from spade_model.seq2seq import SpadeForSeq2Seq
from spade_model.state_space import StateSpace
from spade_model.state_space_kernel import discretize, state_space_kernel

SHARED = Path(os.environ.get("SPADE_SHARED", Path(__file__).parents[3] / "shared"))
GOLDEN = SHARED / "reference" / "golden"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"no golden data in {GOLDEN}; set SPADE_SHARED"
)
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


class Case:
    """One golden case in one precision."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        facts = json.loads((GOLDEN / f"{name}.json").read_text())
        self.name, self.dtype = name, dtype
        self.config: dict[str, Any] = facts["config"]
        self.deviation = facts.get("official_float32_deviation_from_float64", {})
        self.tensors = load_file(GOLDEN / f"{name}.safetensors")
        self.leaves: dict[str, Tensor] = {}
        self.worst = 0.0

    def __getitem__(self, name: str) -> Tensor:
        x = self.tensors[name]
        return x.to(self.dtype) if x.is_floating_point() else x

    def weights(self, prefix: str = "w.") -> dict[str, Tensor]:
        """The published weights as leaves whose gradients can be compared."""
        for name in self.tensors:
            if name.startswith(prefix):
                leaf = self[name].clone()
                self.leaves[name[len(prefix) :]] = leaf.requires_grad_(leaf.is_floating_point())
        return self.leaves

    def rounded(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep conversions, which are exact in float64, from raising the precision tested."""
        return {name: x.to(self.dtype) for name, x in state.items()}

    def check(self, name: str, actual: Tensor, rows: Tensor | None = None) -> None:
        reference = self.tensors[name]
        if self.dtype == torch.float64:
            tolerance = 1e-9 if reference.dtype == torch.float64 else 1e-6
        else:
            facts = self.deviation.get(name) or self.deviation.get(f"{name}(valid)")
            facts = facts or self.deviation.get(name.removeprefix("mid."), {"rel_l2": 0.0})
            tolerance = 3 * max(facts["rel_l2"], 2e-6)
        actual, reference = actual.detach().double(), reference.double()
        if rows is not None:
            actual, reference = actual[rows], reference[rows]
        assert actual.shape == reference.shape
        size = reference.norm()
        if size < 1e-12:  # Analytically zero.
            assert actual.norm() < (1e-4 if self.dtype == torch.float32 else 1e-12)
            return
        error = float((actual - reference).norm() / size)
        self.worst = max(self.worst, error / tolerance)
        assert error <= tolerance, f"{self.name} {name}: {error:.2e} above {tolerance:.2e}"

    def check_gradients(self) -> None:
        """Compare every gradient that the case has with that of the published weight."""
        compared = 0
        for name in self.tensors:
            leaf = self.leaves.get(name.removeprefix("grad."))
            if name.startswith("grad.") and leaf is not None:
                assert leaf.grad is not None, name
                self.check(name, leaf.grad)
                compared += 1
        assert compared > 0


@pytest.fixture
def case(request: pytest.FixtureRequest, dtype: torch.dtype) -> Iterator[Case]:
    loaded = Case(request.param, dtype)
    yield loaded
    print(f"GOLDEN {loaded.name} {dtype} worst error / tolerance {loaded.worst:.3f}")


def cases(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", names, indirect=True)


@contextmanager
def blocked_state_space(model: nn.Module, blocked: bool) -> Iterator[None]:
    """Cut the gradient behind S4, as the published training does; ours never does."""
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: output.detach())
        for module in model.modules()
        if isinstance(module, StateSpace) and blocked
    ]
    yield
    for hook in hooks:
        hook.remove()


@contextmanager
def outputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect what modules return."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    yield seen
    for hook in hooks:
        hook.remove()


def test_hippo_legs() -> None:
    case = Case("s4_hippo_legs_init", torch.float64)
    for N in case.config["N"]:
        A, B = hippo_legs(N)
        case.check(f"N{N}.A_hippo", A)
        case.check(f"N{N}.B_hippo", B[:, None])
        legs = normal_plus_low_rank_legs(N)
        case.check(f"N{N}.w", torch.view_as_real(legs.w))
        case.check(f"N{N}.abs_P_sq", legs.P.abs() ** 2)
        case.check(f"N{N}.abs_B_sq", legs.B.abs() ** 2)
        case.check(f"N{N}.B_times_conj_P", torch.view_as_real(legs.B * legs.P.conj()))


def test_relative_position_buckets() -> None:
    case = Case("rel_buckets", torch.float64)
    for num_buckets, max_distance in case.config["specs"]:
        buckets = relative_position_bucket(
            case["in.relative_position"], num_buckets=num_buckets, max_distance=max_distance
        )
        expected = case[f"enc_local.nb{num_buckets}.md{max_distance}.bidirectional"]
        assert torch.equal(buckets, expected)


def run_state_space(case: Case, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Kernel and output of a published S4 layer by our functions, any number of channels."""
    length, limit = case.config["L"], case.config["l_max"]
    state = case.rounded(published.state_space_state(weights))
    skip = weights["D"]
    del state["D"]
    kernel = state_space_kernel(**state, length_tokens=min(length, limit or length))
    u = case["in.u"][:, None]
    past, future = kernel.chunk(2) if case.config["bidirectional"] else (kernel, None)
    y = fft_convolution(u, past, future) + skip[:, :, None] * u
    return kernel, y.flatten(1, 2)


def converted(case: Case, prefix: str, length: int) -> None:
    """Replace C by what the published code trains, to which its gradients belong."""
    weights = case.leaves
    with torch.no_grad():
        names = {key: weights[f"{prefix}{key}"] for key in ("inv_w_real", "w_imag", "log_dt")}
        P, B = weights[f"{prefix}P"][0], weights[f"{prefix}B"][0]
        Ad, _ = discretize(names["inv_w_real"], names["w_imag"], P, B, names["log_dt"])
        C = torch.view_as_complex(weights[f"{prefix}C"].double())
        rows = torch.cat([C.real, -C.imag], dim=-1).transpose(0, 1)
        rows = (rows - rows @ torch.linalg.matrix_power(Ad, length)).transpose(0, 1)
        real, imaginary = rows.chunk(2, dim=-1)
    weights[f"{prefix}C"] = torch.stack([real, -imaginary], dim=-1).requires_grad_()
    weights[f"{prefix}L"] = torch.tensor(length)


STATE_SPACE_CASES = cases(
    "s4_nplr_causal_n16",
    "s4_nplr_bidir_n16",
    "s4_nplr_bidir_n64_nssm4",
    "s4_nplr_bidir_shorter_than_lmax",
    "s4_nplr_bidir_longer_than_lmax",
    "s4_nplr_causal_channels2",
    "s4_nplr_causal_lmax_none",
    "s4_nplr_bidir_1k",
)


@PRECISIONS
@STATE_SPACE_CASES
def test_state_space(case: Case) -> None:
    kernel, y = run_state_space(case, case.weights("w.init."))
    case.check("mid.kernel", kernel)
    case.check("out.y", y)


@PRECISIONS
@STATE_SPACE_CASES
def test_state_space_gradients(case: Case) -> None:
    """The published gradients are those of the converted C, so we start from it too."""
    weights = case.weights("w.init.")
    for name in ("C", "L"):
        converted = case[f"w.after_first_forward.kernel.kernel.{name}"]
        weights[f"kernel.kernel.{name}"] = converted
    C = weights["kernel.kernel.C"].double().requires_grad_()
    weights["kernel.kernel.C"] = C
    u = case["in.u"].requires_grad_()
    case.tensors["in.u"], case.tensors["in.g"] = u, case["in.g"]
    state = published.state_space_state(weights)
    initial = case.tensors["w.init.kernel.kernel.C"].double()
    assert (state["C"] - initial).norm() <= 1e-6 * initial.norm()
    weights["kernel.kernel.C"] = C
    _, y = run_state_space(case, weights)
    (y * case["in.g"]).sum().backward()
    case.check("grad.u", u.grad)
    case.check_gradients()


@PRECISIONS
@cases("s4_nplr_recurrence_n16")
def test_state_space_as_a_recurrence(case: Case) -> None:
    """The discretised system steps through the same outputs that the convolution gives."""
    weights = case.weights("w.init.")
    state = published.state_space_state(weights)
    system = {key: state[key] for key in ("log_decay", "frequency", "P", "B", "log_dt")}
    Ad, Bd = discretize(**system)
    half = case.config["d_state"] // 2
    dA, dB = case.tensors["mid.dA"][:, :half], case.tensors["mid.dB"][:, :half]
    # Rows that act on (z, z*) act on (Re z, Im z) by the sum and i times the difference.
    first, second = torch.view_as_complex(dA).chunk(2, dim=-1)
    plus, minus = first + second, 1j * (first - second)
    rows = torch.cat([plus, minus], dim=-1)
    expected = torch.cat([rows.real, rows.imag], dim=1)
    assert (Ad - expected).norm() <= 1e-9 * expected.norm()
    pair = torch.cat([dB[..., 0], dB[..., 1]], dim=-1)
    assert (Bd - pair).norm() <= 1e-9 * pair.norm()
    kernel = state_space_kernel(**system, C=state["C"], length_tokens=case.config["T"])
    u = case["in.u"]
    case.check("out.y_conv", fft_convolution(u, kernel[0], None) + state["D"][:, None] * u)
    case.check("out.y_step", fft_convolution(u, kernel[0], None) + state["D"][:, None] * u)


@PRECISIONS
@cases("local_attn_r7", "local_attn_r7_ragged", "local_attn_r15_bias", "local_attn_holes")
def test_local_attention(case: Case) -> None:
    """Our layer has no biases in its projections, so they are put around the function here."""
    config = published.published_config(case.config | {"s4_n_ssm": 1})
    weights = case.weights()
    hidden = case["in.hidden_states"].requires_grad_()
    valid = case["in.attention_mask"].bool()
    windows = local_windows(config, hidden.shape[1], valid, hidden.device)
    query, key, value = (
        functional.linear(hidden, weights[f"{name}.weight"], weights.get(f"{name}.bias")).view(
            *hidden.shape[:2], config.num_heads, config.head_dim
        )
        for name in "qkv"
    )
    bias = window_bias(weights["relative_attention_bias.weight"], windows)
    attended = local_attention(query * config.head_dim**-0.5, key, value, bias, windows)
    output = functional.linear(attended.flatten(2), weights["o.weight"], weights.get("o.bias"))
    case.check("out.attention_output", output, valid)
    (output * case["in.g"]).sum().backward()
    case.check("grad.hidden_states", hidden.grad, valid)
    case.check_gradients()


@PRECISIONS
@cases("spade_layer_post_frozen", "spade_layer_post_trainable", "spade_layer_pre_trainable")
def test_global_local_layer(case: Case) -> None:
    config = published.published_config(case.config)
    layer = GlobalLocalMixing(config)
    hidden = case["in.hidden_states"].requires_grad_()
    valid = case["in.attention_mask"].bool()
    windows = local_windows(config, hidden.shape[1], valid, hidden.device)
    weights = case.weights()
    converted(case, "s4.s4.kernel.kernel.", case.config["max_position_embeddings"])
    state = case.rounded(published.mixing_state(weights))
    modules: dict[str, nn.Module] = {
        "mid.s4_output": layer.state_space,
        "mid.norm_global": layer.global_layer_norm,
        "mid.norm_local": layer.local_layer_norm,
        "mid.aggregate": layer.aggregate,
    }
    blocked = not case.config["trainable_s4"]
    with outputs_of(modules) as seen, blocked_state_space(layer, blocked):
        output = functional_call(layer, state, (hidden, valid, windows), strict=True)
    for name, value in seen.items():
        case.check(name, value, valid)
    case.check("out.hidden_states", output, valid)
    (output * case["in.g"]).sum().backward()
    case.check("grad.hidden_states", hidden.grad, valid)
    case.check_gradients()


@PRECISIONS
@cases("encoder_post_frozen", "encoder_pre_trainable_n64")
def test_encoder(case: Case) -> None:
    config = published.published_config(case.config)
    encoder = Encoder(config)
    weights = case.weights()
    converted(
        case, "encoder.block.0.layer.0.s4.s4.kernel.kernel.", case.config["max_position_embeddings"]
    )
    encoder_weights = {
        name.removeprefix("encoder."): x
        for name, x in weights.items()
        if name.startswith("encoder.")
    }
    state = case.rounded(published.encoder_state(encoder_weights, config))
    valid = case["in.attention_mask"].bool()
    embeddings = functional.embedding(case["in.input_ids"], weights["shared.weight"])
    modules: dict[str, nn.Module] = {"mid.encoder_hidden_0": encoder.first_layer_norm}
    modules |= {f"mid.encoder_hidden_{i + 1}": layer for i, layer in enumerate(encoder.layers)}
    blocked = not case.config["trainable_s4"]
    with outputs_of(modules) as seen, blocked_state_space(encoder, blocked):
        hidden = functional_call(encoder, state, (embeddings, valid), strict=True)
    for name, value in seen.items():
        case.check(name, value, valid)
    case.check("out.encoder_last_hidden_state", hidden, valid)
    loss = (hidden * case["in.g"]).sum()
    case.check("out.loss", loss)
    loss.backward()
    case.check_gradients()


@PRECISIONS
@cases("seq2seq_post_frozen", "seq2seq_post_trainable", "seq2seq_pre_gated_haveBias")
def test_seq2seq(case: Case) -> None:
    config = published.published_config(case.config)
    model = SpadeForSeq2Seq(config)
    weights = case.weights()
    converted(
        case, "encoder.block.0.layer.0.s4.s4.kernel.kernel.", case.config["max_position_embeddings"]
    )
    state = case.rounded(published.seq2seq_state(weights, config))
    assert set(state) == set(model.state_dict())
    valid, labels = case["in.attention_mask"].bool(), case["in.labels"]
    decoder = model.model.decoder
    modules: dict[str, nn.Module] = {"mid.decoder_hidden_0": decoder.first_layer_norm}
    modules |= {f"mid.decoder_hidden_{i + 1}": layer for i, layer in enumerate(decoder.layers)}
    blocked = not case.config["trainable_s4"]
    with outputs_of(modules) as seen, blocked_state_space(model, blocked):
        output = functional_call(
            model, state, (case["in.input_ids"], labels), {"attention_mask": valid}, strict=True
        )
    for name, value in seen.items():
        case.check(name, value, labels != -100)
    case.check("out.encoder_last_hidden_state", output.encoder_hidden_states, valid)
    case.check("out.logits", output.logits, labels != -100)
    case.check("out.loss", output.loss)
    output.loss.backward()
    case.check_gradients()


@PRECISIONS
@cases("seq2seq_post_frozen")
def test_greedy_generation(case: Case) -> None:
    expected, logits = case["out.greedy_ids_no_eos_stop"], case["out.greedy_logits"]
    config = published.published_config(case.config)
    never = next(token for token in range(config.vocab_size) if not (expected == token).any())
    config = dataclasses.replace(config, eos_token_id=never)
    model = SpadeForSeq2Seq(config).to(case.dtype)
    with torch.no_grad():
        model.load_state_dict(published.seq2seq_state(case.weights(), config))
    source, valid = case["in.input_ids"], case["in.attention_mask"].bool()
    steps = logits.shape[1]
    generated = model.generate(source, attention_mask=valid, max_new_tokens=steps)
    assert torch.equal(generated, expected[:, 1 : 1 + steps])
    with torch.no_grad():
        encoded = model.encode(source, valid)
        cache = DecoderCache()
        stepwise = [
            model.decode(expected[:, i : i + 1], encoded, attention_mask=valid, cache=cache)
            for i in range(steps)
        ]
    case.check("out.greedy_logits", torch.cat(stepwise, dim=1))
