"""Which engine searches, and why."""

from importlib import import_module
from importlib.metadata import version

ENGINES = ("auto", "cuml", "cuvs", "faiss")


def resolve_engine(engine: str = "auto") -> tuple[str, str]:
    """The engine that will search, and why. RuntimeError when a GPU's is asked for and cannot run.

    `auto` takes cuML where a GPU is usable, else faiss.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is not one of {ENGINES}")
    if engine == "faiss":
        return "faiss", "asked for"

    # "auto" never fails: without a GPU the reason goes into meta.json
    wanted = "cuml" if engine == "auto" else engine
    obstacle = _obstacle(wanted)
    if obstacle is None:
        return wanted, "a usable GPU"
    if engine == "auto":
        return "faiss", obstacle
    raise RuntimeError(f"engine {engine!r} cannot run: {obstacle}; use engine 'auto' or 'faiss'")


def _obstacle(engine: str) -> str | None:
    name = {"cuml": "cuML", "cuvs": "cuVS"}[engine]
    try:
        if engine == "cuml":
            import cuml.neighbors  # noqa: F401
        else:
            import cuvs.neighbors.brute_force  # noqa: F401
        import cupy
    except ImportError as error:
        return f"{name} is not installed ({error})"
    return None if cupy.cuda.is_available() else "no GPU that CUDA can use"


def describe(engine: str = "auto") -> dict[str, str]:
    """What searches, for meta.json: `engine`, `engine_version`, `engine_device`, and `why`."""
    name, why = resolve_engine(engine)
    if name == "faiss":
        number = version("faiss-cpu")
        return {"engine": name, "engine_version": number, "engine_device": "cpu", "why": why}

    import cupy

    library = import_module(name)
    gpu = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return {
        "engine": name,
        "engine_version": library.__version__,
        "engine_device": gpu,
        "why": why,
    }
