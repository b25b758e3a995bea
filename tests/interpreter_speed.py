"""Triton's interpreter in two thirds of its time: it changes its language for every function that a
kernel calls, at every call. After ``patch()``, a kernel and its functions share one change.
"""

from triton.runtime import interpreter


def patch() -> None:
    """Replace what changes the language; safe to call again."""
    if getattr(interpreter, "changes_once", False):
        return
    interpreter.changes_once = True
    change, run = interpreter._patch_lang, interpreter.GridExecutor.__call__
    changed = set()  # by the globals of the functions, for the kernel that runs

    def change_once(function):
        if id(function.__globals__) in changed:
            return None
        changed.add(id(function.__globals__))
        return change(function)

    def run_alone(self, *args, **constants):
        changed.clear()  # the kernel before took its change back
        return run(self, *args, **constants)

    interpreter._patch_lang = change_once
    interpreter.GridExecutor.__call__ = run_alone
