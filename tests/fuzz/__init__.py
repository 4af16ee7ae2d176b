"""Random programs of torch ops, run eagerly, in float64 and compiled.

``generate(seed)`` gives a ``Program``; its ``source()`` is a readable Python module that reproduces a failure;
``check.check`` runs it; ``shrink.shrink`` makes a failing one small. ``tools/fuzz.py`` drives many in worker processes.
"""
