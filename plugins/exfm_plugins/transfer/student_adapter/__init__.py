"""Student adapter: the teacher's predictions, corrected by fresh labels before they are learned (arXiv 2502.17494)."""
