"""What people see in a terminal: progress while a run works, the plan before it."""
