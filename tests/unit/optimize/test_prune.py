from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from safetensors.torch import load_file
from small_decoders import KINDS, make_decoder, prune_task, write_examples

from conf.errors import UserError
from conf.schema.prune import Pattern, PruneMethod, PruneSpec
from pipelines.matrices import Matrix
from pipelines.optimize.prune.count import count_kept
from pipelines.optimize.prune.depth import choose_depth, measure_loss_without
from pipelines.optimize.prune.kept import Kept, build_smaller
from pipelines.optimize.prune.width import choose_width
from pipelines.optimize.step import prune
from pipelines.optimize.step.task import StepFailed


def load(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: transformers.PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits


IDS = torch.arange(3, 27).reshape(2, 12)


def test_magnitude_zeroes_the_smallest_of_each_matrix_and_leaves_the_others(tmp_path: Path):
    source = make_decoder(tmp_path / "source")
    found = prune.run(prune_task(tmp_path, source, sparsity=0.75))
    assert found["sparsity"] == found["sparsity_min"] == found["sparsity_max"] == 0.75
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "pruned"))
    name = "model.layers.1.mlp.down_proj.weight"
    kept = after[name] != 0
    assert torch.equal(after[name][kept], before[name][kept])
    assert before[name][~kept].abs().max() <= before[name][kept].abs().min()
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert after[name].dtype == torch.bfloat16
    assert (tmp_path / "pruned" / "tokenizer.json").exists()


def test_two_of_four_keeps_the_two_larger_of_each_four_neighbours(tmp_path: Path):
    source = make_decoder(tmp_path / "source")
    found = prune.run(prune_task(tmp_path, source, pattern=Pattern.two_of_four))
    assert found["two_of_four"] == 1.0
    assert found["sparsity"] == 0.5
    name = "model.layers.0.self_attn.q_proj.weight"
    before, after = (load_file(folder / "model.safetensors")[name] for folder in (source, tmp_path / "pruned"))
    largest = before.abs().float().reshape(-1, 4).sort(descending=True).values[:, :2]
    assert torch.equal(after.abs().float().reshape(-1, 4).sort(descending=True).values[:, :2], largest)


def test_pruning_what_is_pruned_already_is_refused(tmp_path: Path):
    once = prune_task(tmp_path, make_decoder(tmp_path / "source"))
    prune.run(once)
    with pytest.raises(StepFailed, match=r"changed nothing: the source already has prune\.sparsity=0\.5"):
        prune.run(prune_task(tmp_path, once.target, "again"))


@pytest.mark.parametrize(
    "zeros, fours, message",
    [
        (40, 16, "at a sparsity of 0.6250, asked for prune.sparsity=0.5"),
        (20, 10, "at a sparsity of 0.3125"),
        (32, 15, "left 1 groups of four"),
    ],
)
def test_zeros_that_were_not_asked_for_are_refused(zeros: int, fours: int, message: str):
    before = {"m": Matrix(name="m", shape=(8, 8), zeros=0, fours=0)}
    spec = PruneSpec(pattern=Pattern.two_of_four)
    with pytest.raises(StepFailed, match=message.replace("at a", "(at|to) a")):
        prune.check_zeros(before, [Matrix(name="m", shape=(8, 8), zeros=zeros, fours=fours)], spec)


def test_two_of_four_names_the_layer_that_it_does_not_fit():
    with pytest.raises(StepFailed, match=r"multiples of 4, got 30 in a.down_proj and 0 more"):
        prune.check_layers({"a.q_proj": 32, "a.down_proj": 30}, PruneSpec(pattern=Pattern.two_of_four))


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrower_decoder_loads_and_equals_the_whole_with_what_was_left_out_silenced(tmp_path: Path, kind: str):
    source = make_decoder(tmp_path / "source", kind)
    whole = load(source)
    kept = Kept(
        layers=[0, 1, 2], heads={at: [1] for at in range(3)}, ffn={at: list(range(at, 32 + at)) for at in range(3)}
    )
    smaller = build_smaller(whole, kept)
    assert smaller.config.num_attention_heads == 2
    assert smaller.config.num_key_value_heads == 1
    assert smaller.config.intermediate_size == 32
    assert smaller.config.head_dim == 8
    with torch.no_grad():
        for at, layer in enumerate(whole.model.layers):
            layer.self_attn.o_proj.weight[:, :16] = 0
            gone = [channel for channel in range(64) if not at <= channel < 32 + at]
            layer.mlp.down_proj.weight[:, gone] = 0
    torch.testing.assert_close(logits(smaller, IDS), logits(whole, IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_depth_writes_a_checkpoint_that_skips_the_layers_left_out(tmp_path: Path, kind: str):
    source = make_decoder(tmp_path / "source", kind)
    task = prune_task(tmp_path, source, method=PruneMethod.depth, layers=0.67)
    found = prune.run(task)
    whole, config = load(source), json.loads((task.target / "config.json").read_text())
    assert found["num_hidden_layers"] == config["num_hidden_layers"] == 2
    assert len(config.get("layer_types") or [1, 1]) == 2
    assert found["parameters"] < found["parameters_before"]
    left_out = ({0, 1, 2} - set(found["layers_kept"])).pop()
    assert found["layer_importance"][left_out] == min(found["layer_importance"])
    whole.model.layers[left_out] = _Through()
    torch.testing.assert_close(logits(load(task.target), IDS), logits(whole, IDS), rtol=1e-3, atol=1e-3)


class _Through(torch.nn.Module):
    attention_type = "full_attention"

    def forward(self, hidden: torch.Tensor, **_: object) -> torch.Tensor:
        return hidden


def test_a_layer_that_does_nothing_is_the_first_to_go(tmp_path: Path):
    model = load(make_decoder(tmp_path / "source"))
    task = prune_task(tmp_path, tmp_path / "source", method=PruneMethod.depth, layers=0.67)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    kept, worth = choose_depth(model, task.read_examples(), task.spec.prune)
    assert kept.layers == [0, 2]
    assert worth[1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("answers", [True, False])
def test_the_loss_without_a_layer_is_that_of_the_answers_or_else_of_all_tokens(tmp_path: Path, answers: bool):
    model = load(make_decoder(tmp_path / "source"))
    write_examples(tmp_path / "examples.parquet", answers=answers)
    task = prune_task(tmp_path, tmp_path / "source", method=PruneMethod.depth, layers=0.67)
    rows = task.read_examples()
    worth = measure_loss_without(model, rows, 5)
    assert len(model.model.layers) == model.config.num_hidden_layers == 3
    model.model.layers[1] = _Through()
    losses = []
    for row in rows:
        ids = torch.tensor([row.prompt + (row.answer or [])])
        begin = len(row.prompt) - 1 if answers else 0
        losses.append(
            torch.nn.functional.cross_entropy(logits(model, ids)[0, begin:-1], ids[0, begin + 1 :], reduction="none")
        )
    assert worth[1] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


def test_width_keeps_what_the_rows_excite(tmp_path: Path):
    model = load(make_decoder(tmp_path / "source"))
    task = prune_task(tmp_path, tmp_path / "source", method=PruneMethod.width, ffn=0.5)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[:32] = 0
            layer.self_attn.v_proj.weight[8:] = 0
        model.model.embed_tokens.weight[:, 5] = 0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[5] = 0
            layer.mlp.down_proj.weight[5] = 0
    spec = PruneSpec(method=PruneMethod.width, heads=0.5, ffn=0.5, hidden=0.75, multiple=8)
    kept = choose_width(model, task.read_examples(), spec)
    assert kept.heads == {at: [0] for at in range(3)}
    assert kept.ffn == {at: list(range(32, 64)) for at in range(3)}
    assert kept.hidden is not None
    assert len(kept.hidden) == 24
    assert 5 not in kept.hidden


def test_width_writes_what_its_configuration_says(tmp_path: Path):
    source = make_decoder(tmp_path / "source", "qwen3", tie_word_embeddings=True)
    task = prune_task(tmp_path, source, method=PruneMethod.width, heads=0.5, ffn=0.5, hidden=0.75, multiple=8)
    found = prune.run(task)
    shape = {key: found[key] for key in prune.SHAPE_KEYS}
    assert list(shape.values()) == [3, 2, 1, 32, 24]
    saved = load_file(task.target / "model.safetensors")
    assert saved["model.layers.0.self_attn.q_proj.weight"].shape == (16, 24)
    assert saved["model.layers.0.mlp.down_proj.weight"].shape == (24, 32)
    assert "lm_head.weight" not in saved
    assert found["parameters"] == sum(tensor.numel() for tensor in saved.values())
    assert logits(load(task.target), IDS).isfinite().all()


def test_biases_go_with_their_rows(tmp_path: Path):
    whole = load(make_decoder(tmp_path / "source", attention_bias=True, mlp_bias=True))
    kept = Kept(layers=[2], heads={2: [1]}, ffn={2: list(range(8))}, hidden=list(range(16)))
    smaller = build_smaller(whole, kept).state_dict()
    whole = whole.state_dict()
    part, to = "model.layers.2.", "model.layers.0."
    assert torch.equal(smaller[f"{to}self_attn.k_proj.bias"], whole[f"{part}self_attn.k_proj.bias"][8:16])
    assert torch.equal(smaller[f"{to}self_attn.o_proj.bias"], whole[f"{part}self_attn.o_proj.bias"][:16])
    assert torch.equal(smaller[f"{to}mlp.up_proj.bias"], whole[f"{part}mlp.up_proj.bias"][:8])
    assert torch.equal(smaller[f"{to}mlp.down_proj.bias"], whole[f"{part}mlp.down_proj.bias"][:16])


@pytest.mark.parametrize(
    "share, total, multiple, count", [(0.5, 4, 1, 2), (0.01, 4, 1, 1), (0.45, 704, 32, 320), (1.0, 7, 32, 7)]
)
def test_a_share_is_a_number_of_units(share: float, total: int, multiple: int, count: int):
    assert count_kept("prune.ffn", share, total, multiple) == count


@pytest.mark.parametrize(
    "share, total, multiple, message",
    [
        (0.9, 2, 1, r"keeps all of 2: at most 1 can stay .*\(about 0.5\)"),
        (0.5, 32, 32, "nothing can go in multiples of 32"),
    ],
)
def test_a_share_that_leaves_nothing_out_is_refused(share: float, total: int, multiple: int, message: str):
    with pytest.raises(StepFailed, match=message):
        count_kept("prune.heads", share, total, multiple)


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"sparsity": 1.0}, "prune.sparsity must be between 0 and 1"),
        ({"sparsity": 0.7, "pattern": Pattern.two_of_four}, "prune.sparsity must be 0.5 with"),
        ({"method": PruneMethod.width, "ffn": 0.5, "pattern": Pattern.two_of_four}, "goes with prune.method=magnitude"),
        (
            {"method": PruneMethod.width, "ffn": 1.5},
            r"prune.ffn is the share that is kept and must be in \(0, 1\], got 1.5",
        ),
        ({"method": PruneMethod.depth}, "prune.layers must be below 1"),
        ({"method": PruneMethod.width}, "prune.heads or prune.ffn or prune.hidden must be below 1"),
        ({"layers": 0.5}, "prune.layers goes with prune.method=depth, not with magnitude"),
        ({"multiple": 0}, "prune.multiple must be >= 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(spec: dict, message: str):
    with pytest.raises(UserError, match=message):
        PruneSpec(**spec)


def test_a_model_of_another_shape_is_refused_by_name(tmp_path: Path):
    source = make_decoder(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "gemma2"}))
    with pytest.raises(StepFailed, match="knows the models llama, mistral, qwen2, qwen3, got model_type=gemma2"):
        prune.run(prune_task(tmp_path, source, method=PruneMethod.depth, layers=0.5))
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(StepFailed, match=r"plain weights, got one that is quantized \(fp8\)"):
        prune.run(prune_task(tmp_path, source, "other"))


def test_a_qwen2_that_vllm_would_misread_is_refused(tmp_path: Path):
    source = make_decoder(tmp_path / "source", "qwen2")
    spec = {"method": PruneMethod.width, "multiple": 8}
    with pytest.raises(
        StepFailed, match="must keep hidden_size / num_attention_heads = 8 of a qwen2 model, got 24 / 4"
    ):
        prune.run(prune_task(tmp_path, source, hidden=0.75, **spec))
    found = prune.run(prune_task(tmp_path, source, "both", hidden=0.5, heads=0.5, **spec))
    assert (found["hidden_size"], found["num_attention_heads"]) == (16, 2)


def test_without_llmcompressor_it_says_what_needs_it_and_what_does_not(tmp_path: Path):
    task = prune_task(tmp_path, make_decoder(tmp_path / "source"), method=PruneMethod.wanda)
    message = r"prune\.method=wanda needs llmcompressor .*`make optimize` installs it; .*magnitude\|depth\|width"
    with mock.patch.dict("sys.modules", {"llmcompressor": None}), pytest.raises(StepFailed, match=message):
        prune.run(task)
