"""The `tesseract` engine: Tesseract's program, run by a child of ours for each image."""
