"""A page to try checkpoints on: drop an image, see its classes. Needs the extra `demo` (Gradio)."""
