"""Moving weights: what a run will write (plan), writing it so that nothing is lost (execute), publishing it."""
