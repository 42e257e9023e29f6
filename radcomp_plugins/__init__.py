"""radcomp: a nerfstudio plugin suite that makes trained radiance fields small and fast."""

__version__ = "0.1.0"
