"""JSON of any shape, and bodies that are nearly those of OpenAI."""

from __future__ import annotations

from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
WORDS = """messages prompt input max_tokens max_completion_tokens temperature top_p top_k min_p n seed stop logprobs
top_logprobs presence_penalty repetition_penalty response_format structured_outputs guided_json guided_choice
encoding_format model stream tools ignore_eos best_of add_special_tokens"""
NAMES = st.sampled_from(WORDS.split())
NEARLY = st.fixed_dictionaries({"type": st.sampled_from(["text", "json_schema"]), "json_schema": JSON})
MESSAGE = st.fixed_dictionaries({"role": JSON | st.just("user"), "content": JSON}, optional={"tool_calls": JSON})
BODIES = st.dictionaries(NAMES, JSON | NEARLY | st.lists(MESSAGE, max_size=2), max_size=4)
