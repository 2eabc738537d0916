"""A checkpoint into a runtime layout and back.  Read `run.lay_out` and `back.restore` first."""
