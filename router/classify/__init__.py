"""The classifier: features, head, calibration, abstention, evaluation."""
