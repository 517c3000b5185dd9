"""How likely a given text is: its tokens are taken one by one as if they had been drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from conf.schema.sampling import SamplingSpec
from serve.engine.onnx.sampler import Likely, log_probabilities
from serve.engine.protocol import ForcedToken, Request


class Given:
    """Stands in a `Sampler`'s place."""

    is_plain = False

    def __init__(self, token_ids: list[int], top: int) -> None:
        """Args: the text, and how many likely tokens are asked for beside each of its own."""
        self._token_ids, self._top = token_ids, top
        self.places: list[ForcedToken] = []

    def draw(self, logits: np.ndarray) -> tuple[int, float | None, Likely]:
        """Takes the text's next token; see `Sampler.draw`."""
        if len(self.places) == len(self._token_ids):
            return 0, None, []  # of an empty text: an answer has a token at least
        token = self._token_ids[len(self.places)]
        logprob, likely = log_probabilities(logits, token, self._top)
        self.places.append(ForcedToken(token_id=token, logprob=logprob, top=tuple(likely)))
        return token, None, []


def split(request: Request) -> tuple[Request, Given]:
    """Returns the request for what stands before the given text, and the text."""
    assert request.forced_from is not None, "a text is given"
    before, text = request.token_ids[: request.forced_from], request.token_ids[request.forced_from :]
    sampling = SamplingSpec(max_tokens=max(1, len(text)), ignore_eos=True)
    return replace(request, token_ids=before, sampling=sampling), Given(text, request.forced_top)
