"""Scores predictions: NE, AUC, GAUC, recall@k, calibration, gains with intervals, gain shares."""
