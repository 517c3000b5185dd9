"""`deployment.models`: a dict of parts that compose as the root does."""

from __future__ import annotations

import pytest

from conf import entry
from conf.errors import UserError
from conf.schema.serve import ServeJob
from conf.schema.task import Task

SMALL = "deployment.models.small"


def compose(*words: str) -> ServeJob:
    return entry.compose("serve", "model=demo", *words)


@pytest.mark.parametrize("word", [f"{SMALL}.model=demo", f"+{SMALL}.model=demo", f"+model@{SMALL}.model=demo"])
def test_a_further_model_is_chosen_from_the_same_group(word: str):
    job = compose(word, f"{SMALL}.engine=tp2_cpu", f"{SMALL}.engine.num_replicas=2", f"{SMALL}.task=embed")
    small = job.deployment.models["small"]
    assert (small.model.path, small.task) == (job.model.path, Task.embed)
    assert (small.engine.tensor_parallel_size, small.engine.num_replicas) == (2, "2")
    assert (job.engine.tensor_parallel_size, job.task) == (1, Task.generate)


def test_each_has_keys_of_its_own_and_text_is_taken_as_it_is():
    words = [f"{SMALL}.model.path=/x/y z", f"{SMALL}.model.name=it's {{a}}", f"{SMALL}.model.adapters.q=/r"]
    more = ["deployment.models.b-2.model.path=/z", f"{SMALL}.engine.vllm.seed=3", f"{SMALL}.vllm.tool_call_parser=h"]
    models = compose(*words, *more).deployment.models
    assert (models["small"].model.name, models["small"].model.path) == ("it's {a}", "/x/y z")
    assert models["small"].model.adapters == {"q": "/r"}
    assert (models["small"].engine.vllm, models["small"].vllm) == ({"seed": 3}, {"tool_call_parser": "h"})
    assert (models["b-2"].model.name, models["b-2"].engine.vllm) == ("z", {})


def test_engines_that_serve_notice_a_hang_sooner():
    job = compose(f"{SMALL}.model=demo", f"{SMALL}.engine=cpu")
    assert job.engine.hang_timeout_s == job.deployment.models["small"].engine.hang_timeout_s == 60


def test_one_of_them_alone_is_a_job_like_any_other():
    job = compose(f"{SMALL}.model.path=/x", f"{SMALL}.vllm.a=1", "deployment.vllm.b=2", "deployment.port=9")
    alone = job.of("small")
    assert (alone.model.path, alone.deployment.vllm, alone.deployment.models) == ("/x", {"a": 1}, {})
    assert alone.deployment.port == 9


@pytest.mark.parametrize(
    "word,named",
    [
        (f"{SMALL}.model=nope", "no option 'nope' of model"),
        (f"{SMALL}.modle.path=x", f"'{SMALL}.modle.path'; did you mean '{SMALL}.model.path'"),
        (f"{SMALL}.engine.num_repl=2", f"did you mean '{SMALL}.engine.num_replicas'"),
        (f"{SMALL}=demo", f"one of those below {SMALL}.engine, {SMALL}.model"),
        (f"{SMALL}.task=embed", f"{SMALL}.model.path must be set: A local folder"),
        (f"{SMALL}.engine.max_num_seqs=0", f"{SMALL}.model.path must be set"),
        ("deployment.models.3.task=embed", "a name below deployment.models is a letter"),
        ("deployment.models.a b.task=embed", "a name below deployment.models is a letter"),
        ("deployment.models={3a:{model:{path:/x}}}", "deployment.models.NAME must be a letter"),
    ],
)
def test_a_mistake_says_the_whole_key(word: str, named: str):
    with pytest.raises(UserError) as caught:
        compose(word)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "word", [f"{SMALL}.engine.max_num_seqs=0", f"{SMALL}.engine.max_num_seqs=x", f"{SMALL}.model.dtype=int3"]
)
def test_a_value_that_breaks_a_rule_is_named_by_its_whole_key(word: str):
    with pytest.raises(UserError, match=rf"^{word.partition('=')[0]}\b"):
        compose(f"{SMALL}.model=demo", word)
