"""The curvature of ΔW: estimated, stored, folded over tasks."""
