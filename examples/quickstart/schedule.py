"""The learning rate over the run: warm-up, constant, linear cool-down."""


def learning_rate_factor(step: int, steps: int, warm_up: int, cool_down: float) -> float:
    """The share of the full learning rate at `step` of `steps`; the last `cool_down` share of the run falls
    linearly to zero.
    """
    start = steps * (1.0 - cool_down)
    rising = min(1.0, (step + 1) / warm_up)
    falling = 1.0 if step < start else (steps - step) / max(1.0, steps - start)
    return min(rising, max(0.0, falling))
