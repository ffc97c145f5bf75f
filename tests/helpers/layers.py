"""Who may import what: the layers of the repository and the check that reads a file's imports.

    bench -> vtfast
    vtfast.cli -> tuning -> evaluation -> information -> inputs -> patching -> models -> runtime
               -> methods -> kernels -> torch, triton
    vtfast.toy -> tuning
    vtfast.vllm -> methods

A new module needs a place in `LAYERS`; that is the moment to think about where it belongs.
"""

import ast
from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

# Layer -> the modules it consists of, each with everything below it.
LAYERS = {
    "kernels": ("vtfast.kernels",),
    "errors": ("vtfast.errors",),
    "ops": ("vtfast.ops",),
    "plan": ("vtfast.plan", "vtfast.plan_file", "vtfast.flops", "vtfast.prune", "vtfast.presets"),
    "report": ("vtfast.report",),
    "methods": ("vtfast.methods",),
    "runtime": ("vtfast.runtime",),
    "models": ("vtfast.models",),
    "processors": ("vtfast.processors",),
    "patching": ("vtfast.patching",),
    "inputs": ("vtfast.inputs",),
    "information": ("vtfast.information",),
    "evaluation": ("vtfast.evaluation",),
    "tuning": ("vtfast.tuning",),
    "toy": ("vtfast.toy",),
    "vllm": ("vtfast.vllm",),
    "cli": ("vtfast.cli", "vtfast.__main__"),
    "front": ("vtfast",),
    "oracles": ("tests.helpers.oracles",),
    "hub": ("tests.hub.files",),
    "tests": ("tests",),
    "bench": ("bench",),
    "setup": ("setup",),
    "docs": ("docs",),
}

# Layer -> the other layers it may import.
_RUNTIME = {"errors", "kernels", "ops", "plan", "methods", "report"}
_PATCHING = _RUNTIME | {"runtime", "models"}
_INPUTS = _PATCHING | {"patching", "processors", "front"}
_INFORMATION = _INPUTS | {"inputs"}
_EVERYTHING = set(LAYERS) - {"bench", "tests", "oracles", "hub", "docs"}
ARROWS = {
    "kernels": set(),
    "errors": set(),
    "ops": {"kernels"},
    "plan": {"errors"},
    "report": {"plan"},
    "methods": {"errors", "kernels", "plan"},
    "runtime": _RUNTIME,
    "models": _RUNTIME | {"runtime"},
    "processors": {"errors"},
    "patching": _PATCHING,
    "inputs": _INPUTS,
    "information": _INFORMATION,
    "evaluation": _INFORMATION | {"information"},
    "tuning": _INFORMATION | {"information", "evaluation"},
    "toy": _INFORMATION | {"information", "evaluation", "tuning"},
    "cli": _INFORMATION | {"information", "evaluation", "tuning", "toy"},
    "vllm": {"errors", "kernels", "plan", "methods"},
    "front": _EVERYTHING,  # lazily: that importing vtfast is light has its own test
    "oracles": set(),
    "hub": set(),  # what `make hub` writes as it stands, for where vtfast is not
    "tests": _EVERYTHING | {"oracles", "bench"},
    "bench": _EVERYTHING | {"tests"},
    "setup": set(),
    "docs": {"front"},
}

# Families share this and know nothing of each other.
FAMILIES_SHARE = tuple(
    f"vtfast.models.{name}"
    for name in ("base", "generic", "gridded", "own_code", "parallel", "vision_scores")
)
# The self-check is no family; of its modules each may import the ones before it.
SELF_CHECK = tuple(
    f"vtfast.models.{name}" for name in ("masked_sequence", "self_check_trial", "self_check")
)

# What of transformers does not depend on a model family; enough for the layers listed after it.
GENERIC_TRANSFORMERS = (
    "transformers.__version__",
    "transformers.AttentionInterface",
    "transformers.AttentionMaskInterface",
    "transformers.PreTrainedModel",
    "transformers.cache_utils",
    "transformers.configuration_utils",
    "transformers.integrations.sdpa_attention",
    "transformers.masking_utils",
    "transformers.modeling_outputs",
    "transformers.modeling_utils",
)
GENERIC_ONLY = {"runtime", "patching", "information", "evaluation", "tuning"}
# Where model classes are at home: the families, and what builds models of its own to show or time.
ANY_TRANSFORMERS = {"models", "processors", "inputs", "toy", "vllm", "cli", "tests", "bench"}

# Triton is for kernels/, but not for the specification, which must run where Triton is not.
NO_TRITON_KERNELS = {"vtfast.kernels.reference", "vtfast.kernels.ragged"}
ANY_TRITON = {"kernels", "tests", "bench"}

# Where code may ask which family a model is of: the families, and what trains a model.
KNOWS_FAMILIES = {"models", "toy", "tests", "bench"}
FAMILY_NAMES = {"model_type", "family", "__name__", "architectures"}


class Import(NamedTuple):
    """One imported name, absolute and dotted; `from a import b` is `a.b`."""

    line: int
    name: str
    relative: bool


def violations(path: str, source: str) -> list[str]:
    """What is wrong with the imports of the file at `path` (posix, from the repository root)."""
    tree = ast.parse(source)
    module = _module(path)
    layer = _layer(module)
    if layer is None or (layer == "front" and module != "vtfast"):
        return [f"{path}: no layer; give {module} a place in tests/helpers/layers.py"]
    found = []
    for item in _imports(tree, module, is_package=path.endswith("/__init__.py")):
        reason = _objection(item, module, layer)
        if reason:
            found.append(f"{path}:{item.line}: {item.name}: {reason}")
    if layer not in KNOWS_FAMILIES:
        for line in _family_comparisons(tree):
            found.append(f"{path}:{line}: only vtfast/models/ asks which family a model is of")
    return found


def _objection(item: Import, module: str, layer: str) -> str | None:
    top = item.name.partition(".")[0]
    if top == "kernels" and layer != "hub":  # there it is Hugging Face's
        return "a second copy of every kernel; import vtfast.kernels"
    if top in {"vtfast", "tests", "bench"}:
        target = _layer(item.name)
        if layer == "kernels" and not item.relative:
            return "kernels/ imports its own files relatively and nothing else of vtfast"
        if target != layer and target not in ARROWS[layer]:
            return f"{layer} may not import {target}, only {sorted(ARROWS[layer])}"
        among_families = target == "models" and module.startswith("vtfast.models.")
        shared = FAMILIES_SHARE
        if module in SELF_CHECK:
            shared += SELF_CHECK[: SELF_CHECK.index(module)]
        if among_families and not _below(item.name, shared):
            return (
                f"a family imports no other; what they share is in {' and '.join(FAMILIES_SHARE)}"
            )
    if top == "triton" and (layer not in ANY_TRITON or module in NO_TRITON_KERNELS):
        return "triton is for kernels/ alone, and not for its specification"
    if top == "transformers" and layer in GENERIC_ONLY:
        if item.name != top and not _below(item.name, GENERIC_TRANSFORMERS):
            return f"{layer} may use of transformers only {GENERIC_TRANSFORMERS}"
    elif top == "transformers" and layer not in ANY_TRANSFORMERS:
        return f"{layer} may not import transformers"
    return None


def _module(path: str) -> str:
    """`vtfast/plan.py` -> `vtfast.plan`; the files in kernels/ have one name, vtfast.kernels.x."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return ".".join(["vtfast", *parts] if parts[0] == "kernels" else parts)


def _layer(name: str) -> str | None:
    owners = [
        (len(start), layer)
        for layer, starts in LAYERS.items()
        for start in starts
        if _below(name, (start,))
    ]
    return max(owners)[1] if owners else None


def _below(name: str, starts: tuple[str, ...]) -> bool:
    return any(name == start or name.startswith(f"{start}.") for start in starts)


def _imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """Every import of the file, inside functions too, and `transformers.x` written out."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(node.lineno, alias.name, False)
            case ast.ImportFrom(module=base, names=names, level=level):
                above = package[: len(package) - level + 1] if level else []
                start = ".".join([*above, *([base] if base else [])])
                for alias in names:
                    yield Import(node.lineno, f"{start}.{alias.name}", level > 0)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(node.lineno, name, False)
            case ast.Attribute(value=ast.Name(id="transformers"), attr=attr):
                yield Import(node.lineno, f"transformers.{attr}", False)


def _family_comparisons(tree: ast.Module) -> Iterator[int]:
    """Lines that compare something's `model_type`, family or class name with text."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                sides = [left, *others]
                if any(map(_names_family, sides)) and any(map(_holds_text, sides)):
                    yield node.lineno
            case ast.Match(subject=subject) if _names_family(subject):
                yield node.lineno


def _names_family(node: ast.expr) -> bool:
    match node:
        case ast.Name(id="__name__"):  # if __name__ == "__main__"
            return False
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in FAMILY_NAMES
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=name), *_]):
            return name in FAMILY_NAMES
    return False


def _holds_text(node: ast.expr) -> bool:
    """A text, or a literal collection of texts."""
    match node:
        case ast.Constant(value=str()):
            return True
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return any(map(_holds_text, parts))
    return False


def circles(sources: Mapping[str, str]) -> list[list[str]]:
    """Groups of modules that import one another, directly or through others.

    Every import counts, those inside functions and under TYPE_CHECKING too. `sources` maps paths
    (posix, from the repository root) to the text of the files.
    """
    paths = {_module(path): path for path in sources}
    imported: dict[str, set[str]] = {}
    for module, path in paths.items():
        tree, is_package = ast.parse(sources[path]), path.endswith("/__init__.py")
        names = (_longest(item.name, paths) for item in _imports(tree, module, is_package))
        imported[module] = {name for name in names if name is not None} - {module}
    reached = {module: _reached(module, imported) for module in imported}
    groups = {frozenset(o for o in reached[m] if m in reached[o]) for m in reached}
    return sorted(sorted(group) for group in groups if group)


def _longest(name: str, modules: Container[str]) -> str | None:
    """The module that an imported name is of: `a.b.c` may be `c` of the module `a.b`."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def _reached(start: str, imported: Mapping[str, set[str]]) -> set[str]:
    """What a module imports, and what that imports, and so on."""
    found: set[str] = set()
    open_ends = list(imported[start])
    while open_ends:
        module = open_ends.pop()
        if module not in found:
            found.add(module)
            open_ends += imported[module]
    return found
