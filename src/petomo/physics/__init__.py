"""Pure, differentiable tensor functions, one per equation of the paper."""
