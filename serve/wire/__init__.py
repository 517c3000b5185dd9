"""What bodies are beside JSON: schemas, and codecs that turn JSON objects into bytes and back."""
