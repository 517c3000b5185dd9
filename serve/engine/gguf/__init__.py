"""llama.cpp as an engine: GGUF files, with neither torch nor vllm in the process. An extra: requirements/gguf.txt."""
