from __future__ import annotations

from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve.cache.index import Index, Vector

DIMS = 3


def unit(*values: float) -> Vector:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


VECTORS = st.tuples(*[st.integers(-3, 3)] * DIMS).filter(any).map(lambda values: unit(*values))
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["add", "near", "use", "remove"]), st.sampled_from("gh"), st.sampled_from("abcde"), VECTORS
    ),
    max_size=60,
)


@given(ACTS, st.integers(1, 6), st.floats(-1, 1))
def test_it_is_bounded_and_gives_the_nearest_of_the_group_and_none_below_the_threshold(
    acts: list[tuple[str, str, str, Vector]], max_entries: int, threshold: float
):
    """Against a plain model: an ordered dict of vectors, the least recently used first."""
    index = Index(max_entries)
    model: OrderedDict[tuple[str, str], Vector] = OrderedDict()
    for act, group, name, vector in acts:
        key = (group, name)
        if act == "add":
            index.add(group, name, vector)
            model[key] = vector
            model.move_to_end(key)
            while len(model) > max_entries:
                model.popitem(last=False)
        elif act == "remove":
            index.remove(group, name)
            model.pop(key, None)
        elif act == "use" and key in model:
            index.use(group, name)
            model.move_to_end(key)
        elif act == "near":
            cosines = {n: float(kept @ vector) for (g, n), kept in model.items() if g == group}
            found = index.near(group, vector, threshold, limit=3)
            assert all(cosine >= threshold and abs(cosine - cosines[n]) < 1e-6 for n, cosine in found)
            far = [cosine for n, cosine in cosines.items() if n not in dict(found)]
            is_full = len(found) == min(3, len(cosines))
            assert is_full or all(cosine < threshold + 1e-6 for cosine in far)
            nearest = [cosine for _, cosine in found]
            assert nearest == sorted(nearest, reverse=True)
            assert not found or max(far, default=-2.0) <= nearest[-1] + 1e-6
        assert len(index) == len(model) <= max_entries
        assert index.num_bytes <= 4 * 4 * DIMS * len(model)


def test_another_models_vectors_take_the_place_of_the_former_ones():
    index = Index(10)
    index.add("g", "old", unit(1, 0))
    assert index.near("g", unit(1, 0, 0), 0.5) == []
    index.add("g", "new", unit(1, 0, 0))
    assert index.near("g", unit(1, 0, 0), 0.5) == [("new", 1.0)]
    assert (index.near("g", unit(1, 0), 0.5), len(index)) == ([], 1)
