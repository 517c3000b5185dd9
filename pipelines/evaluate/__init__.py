"""What a model is worth: quality on labelled rows, size and speed, in a card beside it."""
