"""Requests to be forgotten: the commands (python -m flows.requests) and the flow behind `run`.

A deployment that names a flow by its file makes Prefect put `flows/` first on the path of imports. Whoever
then asks for the HTTP library `requests` would get this package; so it steps aside and hands that one over.
"""

if __name__ == "requests":
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    ours = Path(__file__).resolve().parents[1]
    found = PathFinder.find_spec(__name__, [path for path in sys.path if Path(path).resolve() != ours])
    if found is None or found.loader is None:
        raise ModuleNotFoundError(f"No module named {__name__!r}", name=__name__)
    sys.modules[__name__] = module_from_spec(found)
    found.loader.exec_module(sys.modules[__name__])
