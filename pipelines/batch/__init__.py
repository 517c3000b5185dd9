"""The main job: read -> identify -> infer -> commit."""
