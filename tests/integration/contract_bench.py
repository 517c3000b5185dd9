"""What the contract's checks share: an engine with prompts for it."""

from __future__ import annotations

import json
from pathlib import Path

from conf.schema.sampling import SamplingSpec
from serve.engine.prompt import PromptRenderer
from serve.engine.protocol import Engine, Outcome, Request

CONTEXT = 512
ROOT = Path(__file__).resolve().parent.parent.parent
GREEDY = SamplingSpec(max_tokens=64)


class Bench:
    """An engine with prompts for it."""

    def __init__(self, engine: Engine, renderer: PromptRenderer) -> None:
        self.engine = engine
        self.renderer = renderer
        rows = [json.loads(line) for line in (ROOT / "demo" / "tickets.jsonl").read_text().splitlines()[:32]]
        texts = [renderer.text([{"role": "user", "content": row["ticket"]}]) for row in rows]
        self.prompts = renderer.tokens(texts)

    def request(self, index: int, sampling: SamplingSpec = GREEDY, name: str = "r") -> Request:
        return Request(id=f"{name}{index}", token_ids=self.prompts[index % len(self.prompts)], sampling=sampling)

    @property
    def is_fake(self) -> bool:
        from serve.engine.fake import FakeEngine

        return isinstance(self.engine, FakeEngine)

    @property
    def is_remote(self) -> bool:
        from serve.engine.service.engine import ServiceEngine

        return isinstance(self.engine, ServiceEngine)

    @property
    def knows_forced(self) -> bool:
        """Whether it can say how likely a given text is; see `start.knows_forced`."""
        return self.is_fake or type(self.engine).__module__.startswith("serve.engine.vllm.")

    async def ask(self, *requests: Request) -> list[Outcome]:
        return [outcome async for outcome in self.engine.generate(requests)]
