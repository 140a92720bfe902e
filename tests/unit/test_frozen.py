import pickle

from hypothesis import given
from hypothesis import strategies as st

from labkit.values import FrozenMapping

VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
MAPPINGS = st.dictionaries(st.text(max_size=3), VALUES, max_size=3)


def with_tuples(value):
    if isinstance(value, dict):
        return {key: with_tuples(each) for key, each in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


@given(MAPPINGS)
def test_it_holds_what_was_given_prints_like_a_dict_and_gives_it_back(items):
    frozen = FrozenMapping(items)
    assert frozen == with_tuples(items)
    assert repr(frozen) == repr(with_tuples(items))
    assert frozen.thaw() == items
    assert FrozenMapping(frozen) == frozen
    assert hash(FrozenMapping(items)) == hash(frozen)
    assert pickle.loads(pickle.dumps(frozen)) == frozen


def test_it_does_not_change_with_what_it_was_made_of_nor_with_what_it_gave():
    items = {"table": {"a": 1}, "list": [[1]]}
    frozen = FrozenMapping(items)
    for changed in (items, frozen.thaw()):
        changed["table"]["a"] = 2
        changed["list"][0].append(2)
        changed["more"] = 3
    assert frozen == {"table": {"a": 1}, "list": ((1,),)}


def test_deep_nesting_is_held_printed_and_given_back():
    items = {"k": 1}
    for _ in range(150):
        items = {"k": [items]}
    frozen = FrozenMapping(items)
    assert repr(frozen) == "{'k': ({'k': (" + "{'k': (" * 8 + "{...},)}" + ",)}" * 9
    assert frozen.thaw() == items
    assert isinstance(hash(frozen), int)
