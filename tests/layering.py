"""Read the imports of a source tree, and hold them against the list of parts in the design."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "batchnorm"
# From the top down: an import may only point down this list. In a row joined by "+" the parts are one layer and may
# know each other; in the others they may not.
ROWS = [
    "__main__",  # python -m batchnorm
    "cli",
    "study+batch_size+bench+audit+surgery",
    "models",
    "torch keras jax numpy",
    "core",
    "kernels",
    "statistics+layout+conventions+activations+renorm",
    "reference outputs",
    "errors",
    PACKAGE,  # the package itself: its version, nothing else
]
DOORS = {"batchnorm.keras.by_torch": "torch"}  # the one module each through which a front-end knows another
LEVEL = {part: level for level, row in enumerate(ROWS) for part in row.replace("+", " ").split()}
# What beyond the standard library and this package each lower part may import; the rows above it are free to.
OUTSIDE = {
    "core": set(),
    "kernels": {"numpy"},  # whose arrays the native kernel takes
    "statistics": set(),
    "layout": set(),
    "conventions": set(),
    "activations": set(),
    "renorm": set(),
    "reference": {"numpy"},
    "outputs": set(),
    "errors": set(),
    PACKAGE: {"numpy"},
}


def modules(source: Path) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the file of every module of the package."""
    for path in sorted((source / PACKAGE).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def part_of(module: str) -> str:
    """Return the part a module belongs to: what follows the package's name, or the package."""
    _, _, inside = module.partition(".")
    return inside.split(".")[0] or PACKAGE


def imported(module: str, path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever in it and whether or not they are modules."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            ancestors = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*ancestors, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def allowed(part: str, target: str) -> bool:
    """Return whether one part may import another: itself, what lies below, or a neighbour in a joined row."""
    if part == target or LEVEL[target] > LEVEL[part]:
        return True
    return LEVEL[target] == LEVEL[part] and "+" in ROWS[LEVEL[part]]


def faults(source: Path) -> list[str]:
    """Return a line for every import that points up or sideways, leaves the package where it may not, or is unknown."""
    known = {name for name, _ in modules(source)}
    found = []
    for module, path in modules(source):
        part = part_of(module)
        if part not in LEVEL:
            found.append(f"{module} is no part of the design")
            continue
        for name in imported(module, path):
            top = name.split(".")[0]
            if top != PACKAGE:
                if part in OUTSIDE and top not in OUTSIDE[part] | sys.stdlib_module_names:
                    found.append(f"{module} imports {top}")
                continue
            target = part_of(name)
            if f"{PACKAGE}.{target}" not in known:
                target = PACKAGE  # a name defined in the package itself
            if not allowed(part, target) and DOORS.get(module) != target:
                found.append(f"{module} imports {name}")
    return found
