"""MLP: the plain deep model, the tokens side by side through linear layers."""
