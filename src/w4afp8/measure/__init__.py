"""How fast: problems (`shapes`), the least time a machine allows (`floor`), clocks (`timing`), peers, tuning, a plot.

`w4afp8 bench` and `w4afp8 tune` call this; so do the scripts in benchmarks/.  Everything but the clock, the ceilings
and the kernels themselves runs on any machine: what needs a GPU stands in one place, `stand.hopper`.
"""
