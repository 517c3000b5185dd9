"""What an engine does: measured as its replica starts, so that an autoscaler knows what another one would add."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from serve.engine.speed import Speed

PROMPT_TOKENS = 2048
ANSWER_TOKENS = 16
"""Of each sequence: enough steps for a mean."""
ENOUGH_S = 1.0
"""A run that took so long is the last one: more sequences at a time would take longer."""
GAIN = 1.1
"""More sequences at a time that bring less than this bring nothing."""


async def measure_speed(llm: Any, max_num_seqs: int) -> Speed:
    """Measures an engine that has nothing else to do, for some seconds.

    Args:
        llm: vLLM's AsyncLLM of a model that generates.
        max_num_seqs: sequences that it computes at a time.
    """
    config = llm.model_config
    size, most = config.get_vocab_size(), config.max_model_len
    prompt = max(1, min(PROMPT_TOKENS, most - 1))
    await _took_s(llm, 1, prompt, 1, size, 0)  # what is done once is done: kernels, caches
    prefill = prompt / await _took_s(llm, 1, prompt, 1, size, 1)
    answer, best, seqs = max(2, min(ANSWER_TOKENS, most - 1)), 0.0, min(4, max_num_seqs)
    for salt in range(2, 20):
        # the first token belongs to the prompt
        took_s = await _took_s(llm, seqs, 1, answer, size, salt)
        speed = seqs * answer / took_s
        has_gained, best = speed > GAIN * best, max(best, speed)
        if took_s > ENOUGH_S or not has_gained or seqs == max_num_seqs:
            break
        seqs = min(2 * seqs, max_num_seqs)
    return Speed(prefill, best)


async def _took_s(llm: Any, seqs: int, prompt: int, answer: int, vocabulary: int, salt: int) -> float:
    """Seconds for so many sequences at once, of tokens that no prefix cache has seen."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        max_tokens=answer, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, temperature=0.0
    )

    async def run(number: int) -> None:
        tokens = [(salt * 7919 + number * 104_729 + at * 31) % vocabulary for at in range(prompt)]
        async for _ in llm.generate({"prompt_token_ids": tokens}, params, f"speed-{salt}-{number}"):
            pass

    began_s = time.perf_counter()
    await asyncio.gather(*(run(number) for number in range(seqs)))
    return time.perf_counter() - began_s
