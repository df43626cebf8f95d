"""The order of the house: who imports whom, and what importing the package loads."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

import mobilevitv2_jax

PACKAGE = pathlib.Path(mobilevitv2_jax.__file__).parent

# From left to right: a wing imports only what stands left of it, or in itself. The first seven
# are single files, or as good as that.
ORDER = (
    "errors",
    "arguments",
    "files",
    "class_names",
    "models.config",
    "config",
    "validation",
    "images",
    "models",
    "processing",
    "weights",
    "data",
    "evaluation",
    "training",
    "export",
    "cli",
)
# `from_pretrained` and `save_pretrained` import them inside the function.
DELEGATES = (
    ("models", "weights.pretrained"),
    ("models", "weights.saving"),
    ("processing", "weights.formats"),
)


def modules():
    """Returns the name of every module of the package below it, with its syntax tree."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(path.read_text(), str(path))
    return found


MODULES = modules()


def imports(tree):
    """Returns the full names of all that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def wing(name):
    """Returns the part of the house that a name below the package belongs to."""
    for prefix in sorted(ORDER, key=len, reverse=True):
        if name == prefix or name.startswith(prefix + "."):
            return prefix
    raise AssertionError(f"{name} belongs to no wing of {ORDER}")


def test_a_wing_imports_only_what_stands_left_of_it():
    crossings = []
    for name, tree in MODULES.items():
        if not name:
            continue  # mobilevitv2_jax/__init__.py resolves names when they are asked for
        for imported in imports(tree):
            if not imported.startswith("mobilevitv2_jax.") or imported.endswith(".__version__"):
                continue
            target = imported.removeprefix("mobilevitv2_jax.")
            here, there = wing(name), wing(target)
            if (here, ".".join(target.split(".")[:2])) in DELEGATES:
                continue
            if ORDER.index(there) > ORDER.index(here):
                crossings.append(f"{name} imports {target}")
    assert crossings == []


def test_models_import_the_weights_only_inside_functions():
    for name, tree in MODULES.items():
        if name and wing(name) == "models":
            outside = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            assert not any("weights" in ast.unparse(node) for node in outside), name


@pytest.mark.parametrize("library", ["jax", "flax", "optax", "orbax"])
def test_neither_data_nor_configs_import_jax(library):
    for name, tree in MODULES.items():
        if name and wing(name) in (
            "errors",
            "arguments",
            "files",
            "class_names",
            "models.config",
            "config",
            "validation",
            "data",
        ):
            roots = {imported.split(".")[0] for imported in imports(tree)}
            assert library not in roots, name


def test_only_the_checkpoints_import_orbax():
    users = [
        name
        for name, tree in MODULES.items()
        if any(imported.split(".")[0] == "orbax" for imported in imports(tree))
    ]
    assert users == ["weights.checkpoint"]


@pytest.mark.parametrize("library", ["torch", "tensorflow", "timm", "transformers"])
def test_nothing_imports_another_framework(library):
    """But `mobilevitv2 bench`, which times Hugging Face's model where it is installed."""
    users = {
        name
        for name, tree in MODULES.items()
        if library in {imported.split(".")[0] for imported in imports(tree)}
    }
    assert users == ({"export.peers"} if library in ("torch", "transformers") else set())
    top = [node for node in MODULES["export.peers"].body if isinstance(node, ast.Import)]
    assert library not in "".join(map(ast.unparse, top))


def test_nothing_prints():
    calls = [
        f"{name}:{node.lineno}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("print", "pprint")
    ]
    assert calls == []


def test_every_public_name_resolves():
    for name in mobilevitv2_jax.__all__:
        assert getattr(mobilevitv2_jax, name) is not None
        assert name in dir(mobilevitv2_jax)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'MobileViT'"):
        mobilevitv2_jax.MobileViT  # noqa: B018


def loaded_by(program):
    """Returns the top-level modules that a program has loaded in a process of its own."""
    report = "import json, sys; sys.stdout.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{report}"], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in json.loads(done.stdout)}


HEAVY = {"grain", "orbax", "cv2", "tensorflow_datasets", "sklearn", "matplotlib"}


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_by("import mobilevitv2_jax") & (HEAVY | {"jax", "flax", "numpy"})


def test_no_backend_is_initialised_before_it_must_and_no_reader_of_data_or_other_framework_loaded():
    program = """
import sys
import mobilevitv2_jax as mv
for name in ("MobileViTV2Config", "MobileViTV2ForImageClassification", "create_model"):
    getattr(mv, name)
mv.MobileViTV2Config(width_multiplier=0.5)
import mobilevitv2_jax.training.step, mobilevitv2_jax.weights.names
# The training step knows its tasks, and they know their augmentation and their pictures.
assert not {name.split(".")[0] for name in sys.modules} & {"grain", "orbax", "tensorflow_datasets"}
import mobilevitv2_jax.training.loop
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    loaded = loaded_by(program)
    assert "jax" in loaded
    # Pictures are drawn when a run ends, by one of its processes.
    assert not loaded & {"torch", "tensorflow", "matplotlib", "sklearn"}
