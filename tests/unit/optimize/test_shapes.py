"""What is foretold of a shape is what the step leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_decoders import SHAPE, make_decoder, prune_task

from conf.schema.prune import PruneMethod
from conf.schema.step import StepKind, StepSpec
from pipelines.optimize.decoder import read_config
from pipelines.optimize.shapes import is_known, layer_widths, shape_after
from pipelines.optimize.step import prune
from pipelines.tensors import read_tensors


@pytest.mark.parametrize(
    "spec",
    [
        {"method": PruneMethod.width, "heads": 0.5, "ffn": 0.5, "hidden": 0.75, "multiple": 8},
        {"method": PruneMethod.depth, "layers": 0.6},
        {"method": PruneMethod.magnitude},
    ],
)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_pruned_checkpoint_has_the_shape_that_was_foretold(tmp_path: Path, kind: str, spec: dict):
    source = make_decoder(tmp_path / "source", kind)
    task = prune_task(tmp_path, source, **spec)
    foretold = shape_after(task.spec, read_config(source))
    prune.run(task)
    made = read_config(task.target)
    assert is_known(made)
    assert {key: made[key] for key in (*SHAPE, "head_dim")} == {key: foretold[key] for key in (*SHAPE, "head_dim")}
    tensors = read_tensors(task.target)
    for layer, (inputs, outputs) in layer_widths(foretold).items():
        part = "mlp" if layer in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        assert tensors[f"model.layers.0.{part}.{layer}.weight"].shape == (outputs, inputs)


def test_other_steps_leave_the_shape_alone():
    assert shape_after(StepSpec(kind=StepKind.quantize), SHAPE) == SHAPE
    assert not is_known({**SHAPE, "model_type": "gpt2"})
    assert not is_known({"model_type": "llama", "hidden_size": 8})
