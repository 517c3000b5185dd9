from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sizes import LLAMA_1B, LLAMA_8B, LLAMA_70B, MEASURED, gpus, llama

from conf.errors import UserError
from conf.schema.engine import Device
from conf.schema.hardware import HardwareSpec
from serve.engine.hardware import find_hardware
from serve.engine.room import GRAPH_BYTES, Wish, fits_heads, holds_graphs, room_for
from serve.engine.shape import Shape, choose_shape


def partition(shape: Shape) -> tuple[int, int, int]:
    return shape.tensor_parallel_size, shape.pipeline_parallel_size, shape.num_replicas


def test_a_small_model_is_packed():
    shape = choose_shape(LLAMA_1B, gpus("h200"), MEASURED, 2048, Wish())
    assert shape.engines_per_device == 2
    assert shape.num_replicas == 2
    assert "expected" in shape.reasons["engines_per_device"]


def test_a_model_that_fills_the_device_is_not():
    shape = choose_shape(LLAMA_8B, gpus("h200"), MEASURED, 8192, Wish())
    assert (shape.engines_per_device, shape.num_replicas) == (1, 1)


def test_more_devices_are_more_replicas_where_the_model_fits_on_one():
    assert partition(choose_shape(LLAMA_8B, gpus("h200", 2), MEASURED, 8192, Wish())) == (1, 1, 2)


def test_the_smallest_partition_that_holds_the_model():
    assert partition(choose_shape(LLAMA_70B, gpus("h200", 2), MEASURED, 8192, Wish())) == (2, 1, 1)
    assert partition(choose_shape(LLAMA_70B, gpus("h200", 8), MEASURED, 8192, Wish())) == (2, 1, 4)


def test_a_larger_one_where_the_smallest_leaves_too_small_a_cache_to_be_fast():
    assert partition(choose_shape(LLAMA_70B, gpus("h100", 4), MEASURED, 8192, Wish())) == (4, 1, 1)


def test_stages_where_one_host_is_not_enough():
    shape = choose_shape(LLAMA_70B, gpus("l4", 16), MEASURED, 8192, Wish())
    assert shape.tensor_parallel_size <= 8
    assert shape.pipeline_parallel_size > 1
    assert shape.num_devices <= 16


def test_what_does_not_fit_is_refused_with_the_figures():
    with pytest.raises(UserError, match=r"^hardware.num_devices=1 x 150.1 GB \(h200\) cannot hold the model: 141.1 GB"):
        choose_shape(LLAMA_70B, gpus("h200"), MEASURED, 8192, Wish())
    with pytest.raises(UserError, match=r"engine.max_model_len"):
        choose_shape(LLAMA_8B, gpus("l4"), MEASURED, 131072, Wish())
    with pytest.raises(UserError, match=r"must be <= hardware.num_devices=2, got 4"):
        choose_shape(LLAMA_70B, gpus("h200", 2), MEASURED, 8192, Wish(tensor_parallel_size=4))


def test_what_the_user_has_set_stays_and_says_so():
    wish = Wish(
        tensor_parallel_size=2,
        pipeline_parallel_size=2,
        num_replicas=1,
        max_num_seqs=77,
        in_flight_rows=99,
        kv_cache_bytes=1 << 33,
    )
    shape = choose_shape(LLAMA_8B, gpus("h200", 8), MEASURED, 8192, wish)
    assert partition(shape) == (2, 2, 1)
    assert (shape.max_num_seqs, shape.in_flight_rows, shape.kv_cache_bytes) == (77, 99, 1 << 33)
    assert {key for key, reason in shape.reasons.items() if reason == "set by you"} == {
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "num_replicas",
        "max_num_seqs",
        "in_flight_rows",
        "kv_cache_bytes",
    }


def test_replicas_that_outnumber_the_devices_share_them():
    shape = choose_shape(LLAMA_1B, gpus("h200", 2), MEASURED, 2048, Wish(num_replicas=6))
    assert (shape.engines_per_device, shape.num_devices) == (3, 2)


def test_a_few_rows_need_few_sequences():
    assert choose_shape(LLAMA_8B, gpus("h200"), replace(MEASURED, rows=10), 8192, Wish()).max_num_seqs == 64


def test_on_a_cpu_one_engine_takes_all_cores():
    cpu = find_hardware(HardwareSpec(), Device.cpu, 0)
    shape = choose_shape(llama(256, 704, 4, 4, 2, 2048), cpu, MEASURED, 4096, Wish())
    assert partition(shape) == (1, 1, 1)
    two = choose_shape(llama(256, 704, 4, 4, 2, 2048), cpu, MEASURED, 4096, Wish(num_replicas=2))
    assert two.rate.rows_per_s == pytest.approx(shape.rate.rows_per_s, rel=0.1)


@pytest.mark.parametrize("name", ["tpu_v5e", "tpu_v6e"])
def test_engines_do_not_share_a_tpu(name: str):
    small = llama(256, 704, 4, 4, 2, 2048)
    assert choose_shape(small, gpus("l4", 4), MEASURED, 4096, Wish()).engines_per_device > 1
    shape = choose_shape(small, gpus(name, 4), MEASURED, 4096, Wish())
    assert (shape.engines_per_device, shape.num_replicas) == (1, 4)
    assert shape.reasons["engines_per_device"] == "a device of this kind has one process"


def test_every_choice_has_its_reason():
    shape = choose_shape(LLAMA_8B, gpus("h200"), MEASURED, 8192, Wish())
    assert list(shape.reasons) == [
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "engines_per_device",
        "num_replicas",
        "max_num_seqs",
        "in_flight_rows",
        "kv_cache_bytes",
    ]
    assert all(reason and "\n" not in reason for reason in shape.reasons.values())


@settings(deadline=None)
@given(
    heads=st.sampled_from([8, 14, 24, 32, 40]),
    groups=st.sampled_from([1, 2, 4]),
    layers=st.integers(1, 64),
    devices=st.integers(1, 8),
    name=st.sampled_from(["l4", "h100", "h200"]),
)
def test_a_shape_fits_on_its_devices(heads: int, groups: int, layers: int, devices: int, name: str):
    assume(heads % groups == 0)
    size = llama(heads * 128, heads * 400, layers, heads, groups)
    hardware = gpus(name, devices)
    try:
        shape = choose_shape(size, hardware, MEASURED, 4096, Wish())
    except UserError:
        assert size.weight_bytes > 0.5 * hardware.memory_bytes
        return
    tp, pp = shape.tensor_parallel_size, shape.pipeline_parallel_size
    assert heads % tp == 0
    assert fits_heads(size, tp)
    assert pp <= layers
    assert shape.num_devices <= devices
    assert shape.device_bytes <= hardware.memory_bytes
    assert room_for(size, hardware, tp, pp, shape.engines_per_device, shape.max_num_seqs, Wish()) is not None


@pytest.mark.parametrize("name, engines", [("h200", 2), ("h200", 3), ("h200", 4), ("h100", 2), ("h100", 3)])
def test_engines_that_share_a_device_capture_with_the_cache_that_the_plan_gives_them(name: str, engines: int) -> None:
    hardware = gpus(name)
    room = room_for(LLAMA_1B, hardware, 1, 1, engines, 512, Wish())
    assert room is not None
    assert holds_graphs(hardware.memory_bytes, LLAMA_1B.weight_bytes, engines, room.kv_bytes, None)
    again = room_for(LLAMA_1B, hardware, 1, 1, engines, 512, Wish(kv_cache_bytes=room.kv_bytes))
    assert again is not None
    assert again.taken_bytes == room.taken_bytes


def test_graphs_are_counted_where_they_are_captured() -> None:
    def taken(name: str, **wish: Any) -> int:
        room = room_for(LLAMA_8B, gpus(name), 1, 1, 1, 512, Wish(**wish))
        assert room is not None
        return room.taken_bytes

    plain = taken("h100", captures_graphs=False)
    assert taken("h100") == plain + GRAPH_BYTES
    assert taken("h100", memory_fraction=0.4) == plain
    assert taken("l4") == plain


def test_two_engines_take_what_was_seen_on_an_h200() -> None:
    room = room_for(LLAMA_1B, gpus("h200"), 1, 1, 2, 512, Wish(kv_cache_bytes=40_000_000_000))
    assert room is not None
    assert 2 * (room.taken_bytes + room.kv_bytes) == pytest.approx(
        97.4e9, rel=0.1
    )  # docs/benchmarks/offline_whole.json
