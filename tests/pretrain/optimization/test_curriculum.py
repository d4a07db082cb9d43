"""The stage that holds is the last one that has begun."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pretrain.optimization.curriculum import stage_at
from pretrain.optimization.settings import Curriculum, CurriculumStage


@given(
    starts=st.lists(st.integers(0, 1000), unique=True, max_size=6).map(sorted),
    tokens=st.integers(0, 1100),
)
def test_the_last_stage_that_has_begun_holds(starts: list[int], tokens: int) -> None:
    stages = [CurriculumStage(from_tokens=start) for start in starts]
    begun = [stage for stage in stages if stage.from_tokens <= tokens]
    assert stage_at(stages, tokens) == (begun[-1] if begun else None)


@given(starts=st.lists(st.integers(0, 20), max_size=5))
def test_stages_out_of_order_are_refused(starts: list[int]) -> None:
    values = [{"from_tokens": start, "global_batch_size": 4} for start in starts]
    reader: TypeAdapter[Curriculum] = TypeAdapter(Curriculum)
    if sorted(set(starts)) == starts:
        assert [stage.from_tokens for stage in reader.validate_python(values)] == starts
    else:
        with pytest.raises(ValidationError, match="ascending order"):
            reader.validate_python(values)
