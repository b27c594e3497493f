"""Compilation: what is kept of it from one command to the next, and what it took."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import platformdirs

VARIABLE = "METABILEVEL_COMPILATION_CACHE"
OFF = "off"
MOST = 2 * 2**30  # bytes of compiled programs that are kept; those used longest ago go first
QUICKEST = 0.1  # seconds of the compilation of a program that is kept
UNUSABLE = ("Error reading persistent compilation cache", "Error writing persistent compilation cache")  # jax's words
COMPILED, FOUND = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"


@dataclass
class Compilation:
    """`programs` had to be there in compiled form: `seconds` passed until they were, `cached` of them were kept."""

    programs: int = 0
    cached: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        kept = f", {self.cached} of them from the cache" if self.cached else ""
        return f"{self.programs} programs compiled in {self.seconds:.1f} s{kept}"


def keep_compiled() -> None:
    """Has jax, which is not imported yet, keep what it compiles in the folder that METABILEVEL_COMPILATION_CACHE names,
    or else in the user's cache; nowhere if that is `off`. What jax's own variables say goes before."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted.lower() == OFF:
        return
    folder = os.path.expanduser(wanted) if wanted else platformdirs.user_cache_path("metabilevel") / "compiled"
    for name, value in (
        ("JAX_COMPILATION_CACHE_DIR", folder),
        ("JAX_COMPILATION_CACHE_MAX_SIZE", MOST),
        ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", QUICKEST),
    ):
        os.environ.setdefault(name, str(value))


def without_cache(message: str) -> str | None:
    """What to say of jax's warning `message` that the cache cannot be used, which goes unused from here on; None where
    it is another one."""
    if not message.startswith(UNUSABLE):
        return None
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # which has looked at that setting already
    reason = message.partition("': ")[2] or message
    return (
        f"The compiled programs in {folder} cannot be used ({reason}): going on without them. "
        f"Remove that folder, or name another one in {VARIABLE}, or set that to {OFF!r}."
    )


@contextmanager
def watched() -> Iterator[Compilation]:
    """Counts what is compiled in this block."""
    from jax import monitoring

    seen = Compilation()

    def spent(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILED:
            seen.programs += 1
            seen.seconds += duration_secs

    def happened(event: str, **kwargs: str | int) -> None:
        seen.cached += event == FOUND

    monitoring.register_event_duration_secs_listener(spent)
    monitoring.register_event_listener(happened)
    try:
        yield seen
    finally:
        monitoring.unregister_event_duration_listener(spent)
        monitoring.unregister_event_listener(happened)
