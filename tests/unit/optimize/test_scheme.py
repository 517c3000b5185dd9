from __future__ import annotations

import pytest

from conf.errors import UserError
from conf.schema.distill import Answers, DistillSpec
from conf.schema.quantize import QuantizeSpec, Rounding, Scheme
from pipelines.optimize.quantize.scheme import activation_args, choose_group, weight_args
from pipelines.optimize.step.task import StepFailed


@pytest.mark.parametrize(
    "scheme,bits,kind,strategy",
    [
        (Scheme.fp8, 8, "float", "channel"),
        (Scheme.fp8_static, 8, "float", "tensor"),
        (Scheme.w8a8, 8, "int", "channel"),
        (Scheme.w8a8_static, 8, "int", "channel"),
        (Scheme.w4a16, 4, "int", "channel"),
    ],
)
def test_weights(scheme: Scheme, bits: int, kind: str, strategy: str):
    args = weight_args(QuantizeSpec(scheme=scheme), None)
    assert (args["num_bits"], args["type"], args["strategy"], args["dynamic"]) == (bits, kind, strategy, False)


def test_static_activations_have_one_scale_found_before_and_dynamic_ones_a_scale_a_token():
    assert activation_args(QuantizeSpec(scheme=Scheme.w4a16)) is None
    for scheme, dynamic in ((Scheme.fp8, True), (Scheme.w8a8, True), (Scheme.w8a8_static, False)):
        args = activation_args(QuantizeSpec(scheme=scheme))
        assert args is not None
        assert (args["dynamic"], args["strategy"]) == (dynamic, "token" if dynamic else "tensor")


@pytest.mark.parametrize("widths,size", [({"a": 256, "b": 1024}, 128), ({"a": 256, "b": 704}, 64), ({"a": 96}, 32)])
def test_the_largest_group_that_fits_every_layer(widths: dict[str, int], size: int):
    assert choose_group(QuantizeSpec(scheme=Scheme.w4a16), widths) == size
    assert choose_group(QuantizeSpec(scheme=Scheme.w8a8), widths) is None


def test_a_whole_row_is_a_group_of_any_width():
    spec = QuantizeSpec(scheme=Scheme.w4a16, group_size=-1)
    assert choose_group(spec, {"a": 256, "b": 100}) is None
    assert weight_args(spec, None)["strategy"] == "channel"


def test_a_group_that_fits_not_is_named_with_its_layer():
    with pytest.raises(StepFailed, match="group_size must divide the inputs of b, 704, got 128"):
        choose_group(QuantizeSpec(scheme=Scheme.w4a16, group_size=128), {"a": 256, "b": 704})
    with pytest.raises(StepFailed, match=r"multiple of 32, b has 100; name it in quantize\.ignore"):
        choose_group(QuantizeSpec(scheme=Scheme.w4a16), {"a": 256, "b": 100})


@pytest.mark.parametrize(
    "values,named",
    [
        ({"smooth": 2.0}, "quantize.smooth must be in 0..1"),
        ({"group_size": 64}, "quantize.group_size goes with scheme=w4a16"),
        ({"rounding": Rounding.awq}, "quantize.rounding=awq goes with scheme=w4a16"),
        ({"scheme": Scheme.w4a16, "group_size": 0}, "quantize.group_size must be >= 1, -1 (a whole row) or null"),
        ({"qat": DistillSpec(num_workers=2)}, "quantize.qat trains in one process"),
        ({"qat": DistillSpec(top_k=4)}, "quantize.qat trains in one process"),
        ({"qat": DistillSpec(answers=Answers.teacher)}, "quantize.qat trains in one process"),
    ],
)
def test_what_does_not_go_together(values: dict, named: str):
    with pytest.raises(UserError) as caught:
        QuantizeSpec(**values)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "spec,needs",
    [
        (QuantizeSpec(), False),
        (QuantizeSpec(scheme=Scheme.fp8), False),
        (QuantizeSpec(scheme=Scheme.fp8_static), True),
        (QuantizeSpec(smooth=0.5), True),
        (QuantizeSpec(kv_cache=True), True),
        (QuantizeSpec(scheme=Scheme.w4a16), False),
        (QuantizeSpec(scheme=Scheme.w4a16, rounding=Rounding.gptq), True),
    ],
)
def test_who_needs_rows(spec: QuantizeSpec, needs: bool):
    assert spec.needs_rows is needs
