"""The exercises of the notebooks: one module a notebook, ``notebook_NN``, found by its number.

A module holds ``EXERCISES``, a tuple of :class:`labkit.lab.checks.Exercise`. Solutions are not here: they are cells of
the notebook, so that nbval runs them.
"""
