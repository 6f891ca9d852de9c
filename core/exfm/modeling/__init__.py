"""How a ranking model is assembled from embedding tables, tokens, encoder, backbone and heads."""
