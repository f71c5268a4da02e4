"""A page to try checkpoints on: drop a picture, see its classes. Needs the extra `demo` (Gradio)."""
