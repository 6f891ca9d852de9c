"""Steps a model, and loads the weights that it starts, resumes or predicts with."""
