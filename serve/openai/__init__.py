"""OpenAI's API over an `Engine` that has none of its own; vLLM answers with its own."""
