from __future__ import annotations

import pytest

from conf import entry
from conf.errors import UserError, nearest


def refusal(*words: str) -> str:
    """What the user is told: always one line, in which no exception's class shows."""
    with pytest.raises(UserError) as caught:
        entry.compose("batch", *words)
    message = str(caught.value)
    assert message.strip()
    assert "\n" not in message
    assert "Exception" not in message
    return message


def refused(*words: str) -> str:
    return refusal("model=demo", "data=tickets", *words)


@pytest.mark.parametrize(
    "word,near",
    [
        ("data.promt=x", "data.prompt"),
        ("engine.nm_replicas=1", "engine.num_replicas"),
        ("engine.fault.die_aftr=1", "engine.fault.die_after"),
        ("modle=demo", "model"),
        ("modle.path=x", "model.path"),
        ("Data.prompt=x", "data.prompt"),
        ("data.prompt =x", "data.prompt"),
        ("data.input.x=3", "data.input"),
        ("engine/cpu=x", "engine"),
        ("+data.promt=x", "data.prompt"),
        ("++data.promt=x", "data.prompt"),
        ("~data.promt", "data.prompt"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(word: str, near: str):
    message = refused(word)
    assert f"'{word.lstrip('+~').split('=')[0]}'" in message
    assert f"did you mean '{near}'?" in message


@pytest.mark.parametrize(
    "word,listed", [("zzz=1", "sampling"), ("progress.zzz=1", "progress.quiet"), ("@x=3", "model")]
)
def test_an_unknown_key_without_a_near_one_lists_what_there_is(word: str, listed: str):
    message = refused(word)
    assert word.split("=")[0] in message
    assert listed in message


@pytest.mark.parametrize(
    "word,near",
    [("model=demos", "demo"), ("engine=cpus", "cpu"), ("engine=tp2-cpu", "tp2_cpu"), ("data=Tickets", "tickets")],
)
def test_a_typo_in_an_option_is_named_with_the_nearest_and_all_options(word: str, near: str):
    group, option = word.split("=")
    message = refused(word)
    assert f"'{option}' of {group}" in message
    assert f"did you mean '{near}'?" in message
    assert ", ".join(entry.options(group)) in message


@pytest.mark.parametrize(
    "word", ["engine=", "engine=null", "engine=a/b", "engine=cpu,h200", "engine={a: 1}", "engine=${x}", "engine@x=cpu"]
)
def test_a_choice_that_is_no_option_names_the_group(word: str):
    assert "engine" in refused(word)


@pytest.mark.parametrize(
    "word",
    [
        "engine.max_num_seqs=two",
        "engine.max_num_seqs=1.5",
        "engine.max_num_seqs=",
        "engine.max_num_seqs=null",
        "engine.max_num_seqs=1,2",
        "engine.max_num_seqs=[1]",
        "engine.max_num_seqs={",
        "engine.max_num_seqs=range(1,3)",
        "engine.vllm=3",
        "engine.vllm.x={",
        "engine.env.=3",
        "sampling.max_tokens=true",
        "sampling.max_tokens=1e3",
        "sampling.temperature=warm",
        "sampling.stop=a",
        "sampling.stop=null",
        "sampling.stop=[null]",
        "sampling.stop=[it's]",
        "sampling.stop=[</s>]",
        "model.trust_remote_code=maybe",
        "model.path=null",
        "output.prefix=null",
        "data.input=[it's]",
    ],
)
def test_a_value_of_a_wrong_type_or_form_names_its_key(word: str):
    assert word.split("=")[0] in refused(word)


@pytest.mark.parametrize(
    "word,right",
    [
        ("engine.device=gpu", "cuda"),
        ("engine.device=CUDA", "cuda"),
        ("engine.kind=vlm", "vllm"),
        ("engine.process=inlin", "inline"),
        ("output.format=csv", "jsonl"),
        ("data.format=parqet", "parquet"),
    ],
)
def test_an_unknown_enum_value_names_the_key_and_the_right_ones(word: str, right: str):
    key, value = word.split("=")
    message = refused(word)
    assert key in message
    assert value in message
    assert right in message


@pytest.mark.parametrize(
    "word",
    [
        "progress.interval_s=0",
        "progress.interval_s=-1",
        "cluster.num_cpus=0",
        f"cluster.object_store_bytes={(80 << 20) - 1}",
        "data.limit=0",
        "engine.num_replicas=0",
        "engine.tensor_parallel_size=0",
        "engine.pipeline_parallel_size=-1",
        "engine.max_num_seqs=0",
        "engine.max_model_len=0",
        "engine.max_in_flight=0",
        "engine.kv_cache_bytes=0",
        "engine.max_restarts=-1",
        "output.rows_per_file=0",
        "sampling.max_tokens=0",
        "sampling.temperature=-0.1",
        "sampling.temperature=nan",
        "sampling.top_p=0",
        "sampling.top_p=1.1",
        "sampling.top_k=-1",
        "sampling.min_p=-0.1",
        "sampling.min_p=1.1",
        "sampling.repetition_penalty=0",
        "sampling.presence_penalty=2.1",
        "sampling.presence_penalty=-2.1",
        "sampling.frequency_penalty=2.1",
        "sampling.frequency_penalty=-2.1",
    ],
)
def test_a_value_that_breaks_a_rule_names_key_rule_and_value(word: str):
    key, value = word.split("=")
    message = refused(word)
    assert f"{key} must be" in message
    assert value in message


@pytest.mark.parametrize(
    "word",
    [
        "progress.interval_s=0.1",
        "cluster.num_cpus=1",
        f"cluster.object_store_bytes={80 << 20}",
        "data.limit=1",
        "engine.max_restarts=0",
        "engine.max_model_len=1",
        "output.rows_per_file=1",
        "sampling.max_tokens=1",
        "sampling.top_p=1",
        "sampling.top_k=0",
        "sampling.min_p=1",
        "sampling.presence_penalty=-2",
        "sampling.frequency_penalty=2",
    ],
)
def test_a_value_on_the_edge_of_a_rule_is_taken(word: str):
    key, value = word.split("=")
    group, leaf = key.split(".")
    job = entry.compose("batch", "model=demo", "data=tickets", word)
    assert getattr(getattr(job, group), leaf) == float(value)


def test_missing_input_says_what_it_is_and_where_to_get_it():
    message = refusal("model=demo")
    assert "data.input must be set" in message
    assert "data=NAME, of openai_batch, table, tickets" in message


def test_missing_model_says_what_it_is_and_where_to_get_it():
    message = refusal("data=tickets")
    assert "model.path must be set" in message
    assert "model=NAME, of demo, hf" in message


@pytest.mark.parametrize(
    "word",
    [
        "data.prompt=${nope}",
        "data.prompt=${",
        "data.prompt=${}",
        "data.prompt=${a b}",
        "data.prompt=${oc.env:MANTA_ABSENT}",
        "data.prompt=${noresolver:1}",
        "data.prompt=a ${nope} b",
        "model.name=${model.name}",
        "engine.max_num_seqs=${nope}",
        "engine.max_num_seqs=${model.name}",
        "data.input=[${nope}]",
    ],
)
def test_a_bad_interpolation_names_its_key(word: str):
    assert word.split("=")[0] in refused(word)


@pytest.mark.parametrize("word", ["x", "", "=", "=x", "a b", "--foo", "engine", "data.prompt", "+engine.env.FOO"])
def test_a_word_that_is_no_key_and_value_is_named(word: str):
    assert f"'{word}' is not key=value" in refused(word)


@pytest.mark.parametrize("word", ["data.prompt", "engine", "model"])
def test_a_word_without_value_is_not_corrected_to_a_word_without_value(word: str):
    assert f"did you mean '{word}'?" not in refused(word)


@pytest.mark.parametrize(
    "word,below", [("engine.fault=3", "die_after"), ("engine.fault=null", "die_after"), ("progress=3", "quiet")]
)
def test_setting_a_group_of_keys_names_the_keys_below(word: str, below: str):
    message = refused(word)
    assert f"'{word.split('=')[0]}' is a group of keys" in message
    assert below in message


@pytest.mark.parametrize(
    "word",
    [
        "~data.prompt",
        "~data.prompt=x",
        "~engine.env",
        "~engine.env.FOO",
        "~engine.fault",
        "~model@x",
        "+data.prompt=x",
        "+engine.num_replicas=2",
        "+engine=cpu",
        "++engine=cpu",
        "++engine.max_num_seqs=two",
        "+nope=1",
    ],
)
def test_adding_and_deleting_what_cannot_be_names_the_key(word: str):
    assert word.lstrip("+~").split("=")[0] in refused(word)


def test_hydra_keys_are_checked_too():
    assert "hydra.nope" in refused("hydra.nope=1")


def test_nearest_is_empty_when_nothing_is_close():
    assert nearest("zzz", ["model", "data"]) == ""
    assert nearest("modl", ["model", "data"]) == "; did you mean 'model'?"
