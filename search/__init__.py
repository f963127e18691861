"""Search strategies, budgets and stopping rules, pure given an rng."""
