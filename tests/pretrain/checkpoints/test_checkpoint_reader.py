"""Numbers come back by name and place however many ranks wrote them, or not at all."""

from __future__ import annotations

import copy
import json
import math
import shutil

import hypothesis.strategies as st
import pytest
import torch
from checkpoint_saves import PARAMETERS, expected, facts_of, save, saver_of, snapshot_of
from hypothesis import HealthCheck, given, settings

from pretrain.checkpoints.checkpoint_format import (
    MANIFEST,
    WHOLE,
    checkpoint_facts,
    latest_complete,
    list_checkpoints,
    manifest_problem,
    rank_file,
    read_manifest,
    step_of,
    verify_checkpoint,
)
from pretrain.checkpoints.reader import FRAGMENTS, CheckpointReader, load_weights
from pretrain.checkpoints.snapshot import Snapshot
from pretrain.checkpoints.tensor_file import write_tensors
from pretrain.errors import CheckpointError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One checkpoint of one rank."""
    run = tmp_path_factory.mktemp("run")
    saver = saver_of(run)
    snapshot = snapshot_of(0.5)
    snapshot.whole["optimizer/row/scale"] = torch.tensor([3], dtype=torch.int64)
    save(saver, 3, snapshot, heldout_loss=0.1 + 0.2)
    saver.wait()
    return latest_complete(run)


def as_ranks(source, folder, world_size, cut=snapshot_of):
    """The checkpoint as so many ranks would have written it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    (folder / rank_file(0)).unlink()
    for rank in range(world_size):
        part = cut(0.5, rank, world_size)
        places = {FRAGMENTS: json.dumps(part.places)}
        write_tensors(folder / rank_file(rank), part.tensors, places)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["world_size"] = world_size
    manifest["files"] |= {
        rank_file(rank): manifest["files"][rank_file(0)] for rank in range(world_size)
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_what_a_checkpoint_says(checkpoint):
    assert checkpoint.name == "step-00000003"
    facts = checkpoint_facts(checkpoint)
    assert (
        facts.items()
        >= {
            "kind": "scheduled",
            "heldout_loss": 0.1 + 0.2,
            "updates": 3,
            "sample_index": 24,
            "world_size": 1,
        }.items()
    )
    assert "files" not in facts
    (info,) = list_checkpoints(checkpoint.parent.parent)
    assert (info.kind, info.heldout_loss, info.complete) == ("scheduled", 0.1 + 0.2, True)
    assert info.size_bytes == sum(file.stat().st_size for file in checkpoint.iterdir())
    weights = load_weights(checkpoint)
    assert torch.equal(weights.pop("head"), weights["layer.weight"])
    assert weights.keys() == expected(0.5).keys(), "states of the optimizer are no weights"
    assert all(torch.equal(weights[name], value) for name, value in expected(0.5).items())
    reader = CheckpointReader(checkpoint)
    assert reader.read_state("row", "scale").tolist() == [3]
    with pytest.raises(CheckpointError, match="holds no tensor"):
        reader.read_state("column", "scale")
    with pytest.raises(CheckpointError, match="holds no tensor"):
        reader.read_full("nobody")


@settings(max_examples=30)
@given(world_size=st.integers(1, 9), data=st.data())
def test_any_slice_is_found_whatever_ranks_wrote_it(checkpoint, tmp_path_factory, world_size, data):
    folder = tmp_path_factory.getbasetemp() / "step-00000003"
    near = data.draw(st.floats(0, 1))
    reader = CheckpointReader(as_ranks(checkpoint, folder, world_size), near=near)
    name = data.draw(st.sampled_from(sorted(PARAMETERS)))
    flat = expected(0.5)[name].reshape(-1)
    start = data.draw(st.integers(0, len(flat)))
    length = data.draw(st.integers(0, len(flat) - start))
    found = reader.read_slice("weight", name, start, length)
    assert torch.equal(found, flat[start : start + length])
    assert torch.equal(reader.read_slice("exp_avg", name, start, length), -found)
    assert torch.equal(reader.read_full(name), expected(0.5)[name])


def rank_holding(places, tensors=None):
    def cut(value, rank, world_size):
        if tensors is not None:
            return Snapshot(places, tensors)
        vectors = {f"weight/{name}": torch.ones(place[1]) for name, place in places.items()}
        return Snapshot(places, vectors)

    return cut


@pytest.mark.parametrize(
    ("places", "tensors", "world_size", "complaint"),
    [
        ({"scale": (0, 1)}, None, 2, "another rank too holds 'scale'"),
        ({"layer.bias": (2, 3)}, None, 3, "another rank too holds 'layer.bias'"),
        ({"scale": (1, 1)}, None, 1, "more than there is of 'scale'"),
        ({"layer.bias": (5, 7)}, None, 1, "more than there is"),
        ({"stranger": (0, 1)}, None, 1, "more than there is of 'stranger'"),
        ({"scale": (0, 1)}, {"weight/layer.bias": torch.ones(11)}, 1, "not what its place"),
        ({"scale": (0, 1)}, {"weight/scale": torch.ones(2)}, 1, "not what its place"),
        ({"scale": (0, 1)}, {"weight/scale": torch.ones(1).double()}, 1, "not what its place"),
        ({"scale": (0, 1)}, {"weight/scale": torch.ones(1, 1)}, 1, "not what its place"),
        ({"scale": (0, -1)}, {}, 1, "does not say what it holds"),
        ({"scale": (0, 1e3)}, {}, 1, "does not say what it holds"),
        ({"scale": (0, math.nan)}, {}, 1, "does not say what it holds"),
        ({"scale": "01"}, {}, 1, "does not say what it holds"),
        ([], {}, 1, "does not say what it holds"),
    ],
)
def test_ranks_that_contradict_are_refused(
    checkpoint, tmp_path, places, tensors, world_size, complaint
):
    cut = rank_holding(places, tensors)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_weights(as_ranks(checkpoint, tmp_path / "hostile", world_size, cut))
    assert len(str(caught.value).splitlines()) == 1


def test_a_gap_is_an_error_before_memory_is_taken(checkpoint, tmp_path):
    """Also where the manifest names a parameter of a million terabytes."""
    cut = rank_holding({"layer.bias": (0, 5)})
    folder = as_ranks(checkpoint, tmp_path / "gaps", 1, cut)
    with pytest.raises(CheckpointError, match="holds 5 of 11 elements of weight layer"):
        CheckpointReader(folder).read_full("layer.bias")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["parameters"]["layer.bias"] = [1 << 60]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="holds 5 of 1152921504606846976 elements"):
        CheckpointReader(folder).read_full("layer.bias")
    with pytest.raises(CheckpointError, match="holds 0 of 5 elements of exp_avg"):
        CheckpointReader(folder).read_slice("exp_avg", "layer.bias", 0, 5)


@settings(max_examples=40)
@given(
    one=st.tuples(st.integers(0, 11), st.integers(0, 11)),
    other=st.tuples(st.integers(0, 11), st.integers(0, 11)),
)
def test_an_element_that_two_ranks_hold_is_refused(checkpoint, tmp_path_factory, one, other):
    places = [(min(pair), max(pair) - min(pair)) for pair in (one, other)]

    def cut(value, rank, world_size):
        return rank_holding({"layer.bias": places[rank]})(value, rank, world_size)

    folder = as_ranks(checkpoint, tmp_path_factory.getbasetemp() / "overlaps", 2, cut)
    said = complaint_of(lambda: CheckpointReader(folder).read_full("layer.bias"))
    held = [set(range(start, start + length)) for start, length in places]
    if len(held[0]) == 11:
        assert said is None, "what is whole is looked for no further"
    else:
        assert ("another rank too" in (said or "")) == bool(held[0] & held[1])
        assert (said is None) == (not held[0] & held[1] and len(held[0] | held[1]) == 11)


def complete_manifest(checkpoint):
    return json.loads((checkpoint / MANIFEST).read_text())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format_version", 1),
        ("format_version", "2"),
        ("step", -1),
        ("step", True),
        ("step", 3.0),
        ("step", 1 << 62),
        ("heldout_loss", "low"),
        ("kind", "emergency"),
        ("world_size", 0),
        ("world_size", 2),
        ("world_size", (1 << 31) - 1),
        ("parameters", {"a": [-1]}),
        ("parameters", {"a": 3}),
        ("parameters", {"a": [1] * 1000}),
        ("tied", {"a": 3}),
        ("fingerprints", []),
        ("quarantined", {}),
        ("created_unix_seconds", math.inf),
        ("files", {}),
        ("files", {"../x": {"size_bytes": 1, "checksum": "0" * 32}}),
        ("files", {"config.yaml": {"size_bytes": 1}}),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(checkpoint, key, value):
    manifest = complete_manifest(checkpoint)
    assert manifest_problem(manifest) is None
    problem = manifest_problem(manifest | {key: value})
    assert problem is not None
    assert len(problem.splitlines()) == 1
    del manifest[key]
    assert manifest_problem(manifest) is not None


def complaint_of(action):
    """The error of an action, which must be one that a terminal can show; none if it succeeds."""
    try:
        action()
    except CheckpointError as error:
        return str(error).encode().decode()
    return None


def replaced(draw, value, new):
    """The value with one place of it, however deep, replaced by another or left out."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        result = dict(value)
        if draw(st.booleans()):
            result[key] = replaced(draw, value[key], new)
        else:
            result.pop(key)
        return result
    return new


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_manifest_gives_one_line_or_a_checkpoint(checkpoint, tmp_path, data):
    numbers = st.integers(-9, 1 << 70) | st.floats()
    values = st.none() | st.text(max_size=4) | numbers | st.lists(numbers, max_size=2)
    manifest = copy.deepcopy(complete_manifest(checkpoint))
    changed = replaced(data.draw, manifest, data.draw(values))
    text = json.dumps(changed).encode()
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(text) - 1))
        text = text[:place] + data.draw(st.binary(max_size=3)) + text[place + 1 :]
    folder = tmp_path / "changed"
    if not folder.exists():
        shutil.copytree(checkpoint, folder)
    (folder / MANIFEST).write_bytes(text)
    for read in (read_manifest, load_weights):
        said = complaint_of(lambda read=read: read(folder))
        assert said is None or len(said.splitlines()) == 1
    verify_checkpoint(folder)


def test_a_manifest_of_many_gigabytes_is_not_read(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "huge")
    with (tmp_path / "huge" / MANIFEST).open("r+b") as stream:
        stream.truncate(1 << 34)
    assert "too large" in verify_checkpoint(tmp_path / "huge")[0]


def test_each_kind_of_damage_is_named(checkpoint, tmp_path):
    run = tmp_path / "run"

    def damaged(harm):
        shutil.rmtree(run, ignore_errors=True)
        folder = run / "checkpoints" / checkpoint.name
        shutil.copytree(checkpoint, folder)
        harm(folder)
        (problem,) = verify_checkpoint(folder)
        (info,) = list_checkpoints(run)
        return problem, info

    def flip(folder):
        content = bytearray((folder / WHOLE).read_bytes())
        content[-1] ^= 1
        (folder / WHOLE).write_bytes(content)

    problem, info = damaged(flip)
    assert f"{WHOLE}: its checksum differs" in problem
    assert info.complete, "listing reads sizes alone"
    for harm, words in (
        (lambda folder: (folder / rank_file(0)).unlink(), f"{rank_file(0)}: missing"),
        (lambda folder: (folder / WHOLE).write_bytes(b"12"), "2 bytes, the manifest says"),
        (lambda folder: (folder / MANIFEST).unlink(), f"no {MANIFEST}"),
    ):
        problem, info = damaged(harm)
        assert words in problem
        assert not info.complete
        assert info.problem == problem
        with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
            latest_complete(run)


def test_a_checkpoint_under_another_steps_name_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "step-00000004")
    assert (
        "states step 3: of another checkpoint" in verify_checkpoint(tmp_path / "step-00000004")[0]
    )
    shutil.copytree(checkpoint, tmp_path / "my copy")
    assert verify_checkpoint(tmp_path / "my copy") == []


@given(name=st.from_regex(r"\Astep-[0-9a-f]{0,20}(\.partial)?\Z"))
def test_only_names_that_are_written_are_names(name):
    step = step_of(name)
    assert step is None or name == f"step-{step:08d}"
    assert step_of(f"step-{10**9:08d}") == 10**9


def test_facts_are_as_they_were_given(checkpoint):
    manifest = read_manifest(checkpoint)
    assert all(manifest[key] == value for key, value in facts_of(3).items())
