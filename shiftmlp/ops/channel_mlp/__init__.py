from . import op, reference  # noqa: F401
