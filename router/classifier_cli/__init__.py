"""The `classifier` group and `explain`: fit, judge, promote and compare classifiers, and look into what they say."""
