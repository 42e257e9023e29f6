"""`two-rooms`: placeholder while being built."""
from radcomp_plugins.scenes.still_life import cameras, scene  # noqa: F401
