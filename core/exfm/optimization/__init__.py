"""Steps the dense weights of a model: learning rate, clipping, average of the weights, advice when it diverges."""
