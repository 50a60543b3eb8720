"""The rules of the house, checked on the source itself: who may import whom, and what no file may do."""

from __future__ import annotations

import ast
import collections
import functools
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "cli",
    "flows",
    "browser",
    "evaluation",
    "selfsup",
    "teachers",
    "student",
    "ingest",
    "tasks",
    "pipeline",
)
"""The rooms. That imports run downwards in this order, without circles, is checked by import-linter (`make check`)."""
PLUGINS = ("pipeline/sources", "pipeline/export", "teachers", "selfsup", "evaluation/probes", "student/export")
"""Folders whose files are found by their names, as `kind: coco` is `pipeline/sources/coco.py`."""
PLUGIN_CLASSES = {"Config", "Source", "Writer", "TaskLabel", "TaskModel"}
"""Classes that every plug-in of a kind has."""
CAN_RUN_CODE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}
MOST_LINES, MOST_FUNCTION_LINES, MOST_ARGUMENTS = 400, 60, 6
MOST_SILENT_STATEMENTS = 3
"""A public method of so many statements needs no docstring: `NewImage.key`, `Network.save`."""
REGISTRIES = re.compile(
    r"https?://[\w.-]*(pypi\.org|pythonhosted\.org|anaconda\.(org|com)|npmjs\.|huggingface\.co|hf\.co|docker\.io"
    r"|ghcr\.io|quay\.io|download\.pytorch\.org|unpkg\.com|jsdelivr\.net)"
)
"""Hosts that packages and weights come from: which of them is asked is for the user's machine to say."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def source_files() -> list[Path]:
    folders = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return sorted([ROOT / "must.py", *folders])


def every_python_file() -> list[Path]:
    """Product, tests and benchmarks."""
    return [*source_files(), *sorted(path for name in ("tests", "benchmarks") for path in (ROOT / name).rglob("*.py"))]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full module name) of every import in the file, in functions as well."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)}:{node.lineno}: a relative import; write the whole name"
            yield node.lineno, str(node.module)


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, Function))


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_import_linter_knows_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    assert settings["root_packages"] == list(PACKAGES)
    [layers] = [contract for contract in settings["contracts"] if contract["type"] == "layers"]
    assert [name for layer in layers["layers"] for name in layer.split(" | ")] == list(PACKAGES)
    [circles] = [contract for contract in settings["contracts"] if contract["type"] == "acyclic_siblings"]
    assert circles["ancestors"] == list(PACKAGES)


def test_must_does_not_import_the_command() -> None:
    """`must.py` is a module and no package, which import-linter passes over."""
    assert not [module for _, module in imports(ROOT / "must.py") if module.split(".")[0] in ("cli", "benchmarks")]


def test_scripts_of_the_page_import_each_other_without_circles() -> None:
    scripts = {path.name: path.read_text("utf-8") for path in (ROOT / "browser" / "page").glob("*.js")}
    graph = {name: set(re.findall(r'from "\./([\w.]+)"', text)) for name, text in scripts.items()}
    assert graph["app.js"], "imports are recognised"
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("folder", PLUGINS)
def test_plugins_do_not_import_each_other(folder: str) -> None:
    """Each is to be read, and deleted, alone; what several need is in a `_module` of the folder, or further down."""
    names = set(kinds(folder))
    assert len(names) > 1
    wrong = [
        f"{shown(path)}:{line} imports {module}"
        for path in (ROOT / folder).glob("[!_]*.py")
        for line, module in imports(path)
        if module in names
    ]
    assert not wrong, wrong


def test_a_class_name_means_one_thing() -> None:
    defined = collections.defaultdict(set)
    for path in [*source_files(), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in PLUGIN_CLASSES:
                defined[node.name].add(shown(path))
    twice = {name: sorted(paths) for name, paths in defined.items() if len(paths) > 1}
    assert not twice, twice


RIDDLES = ("What", "Whether", "How", "Where", "Which", "Of", "It", "Its", "All")
"""First words that leave a reader to find out what a thing is or does."""


def test_docstrings_open_with_what_a_thing_is_or_does() -> None:
    definition = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    opened = [
        (shown(path), docstring.split("\n")[0])
        for path in [*source_files(), *(ROOT / "benchmarks").rglob("*.py")]
        for node in ast.walk(tree(path))
        if isinstance(node, definition) and (docstring := ast.get_docstring(node))
    ]
    wrong = [(path, line) for path, line in opened if line.split()[0] in RIDDLES]
    assert not wrong, wrong


def test_every_package_is_installed() -> None:
    """`pyproject.toml` lists them one by one: one that it forgets is missing where the source is not at hand."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    there = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in source_files() if path.parent != ROOT
    }
    assert set(settings["packages"]) == there
    assert len(settings["packages"]) == len(there)


def test_only_cli_imports_must() -> None:
    importing = {package_of(path) for path in source_files() for _, module in imports(path) if module == "must"}
    assert importing == {"cli"}


def test_prefect_is_imported_in_flows_only() -> None:
    wrong = [
        shown(path)
        for path in source_files()
        for _, module in imports(path)
        if module.split(".")[0] == "prefect" and package_of(path) != "flows"
    ]
    assert not wrong, wrong


def kinds(folder: str) -> list[str]:
    """The modules of a package whose files are its kinds."""
    return [f"{folder.replace('/', '.')}.{path.stem}" for path in sorted((ROOT / folder).glob("[!_]*.py"))]


def torch_free_modules() -> list[str]:
    labels = [f"tasks.{path.parent.name}.label" for path in sorted((ROOT / "tasks").glob("*/label.py"))]
    shared = ["errors", "recipe.recipe", "recipe.reader", "steps.artifact", "stores.images", "stores.labels"]
    shared += ["stores.codecs", "stores.rejections", "data.dataset", "data.decode", "models.weights"]
    named = [f"pipeline.{name}" for name in shared]
    files = [name for folder in ("pipeline/sources", "teachers", "evaluation/probes") for name in kinds(folder)]
    return ["must", "cli.main", "flows.plan.steps", *named, *labels, *files]


def test_what_plans_and_the_page_load_has_no_torch_and_no_prefect() -> None:
    modules = torch_free_modules()
    assert "tasks.depth.label" in modules
    assert "pipeline.sources.coco" in modules
    assert "teachers.supervised" in modules
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'torchvision', 'timm', 'prefect'} & set(sys.modules)\n"
        "    if heavy: sys.exit(f'importing {name} loads {sorted(heavy)}')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_kind_may_be_what_is_loaded_first() -> None:
    """A step's process loads the step's function, whatever else it has loaded."""
    modules = [*kinds("teachers"), *kinds("pipeline/sources"), *kinds("evaluation/probes"), "flows.plan.steps", "must"]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        f"    for other in [each for each in sys.modules if each.split('.')[0] in {(*PACKAGES, 'must')!r}]:\n"
        "        del sys.modules[other]\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_on_disk_can_run_code() -> None:
    wrong = []
    for path in every_python_file():
        wrong += [f"{shown(path)}:{line} imports {module}" for line, module in imports(path) if module in CAN_RUN_CODE]
        wrong += [f"{shown(path)}:{call.lineno} {why}" for call in calls(path) if (why := unsafe(call))]
    assert not wrong, "\n".join(wrong)


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def unsafe(call: ast.Call) -> str | None:
    """Why a call may execute what it reads, or None."""
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "torch.load" and given.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if name in ("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"):
        return f"{name}: yaml.safe_load reads a recipe"
    if name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
        return "np.load with allow_pickle"
    return f"{name} runs what it is given" if name in ("eval", "exec", "os.system") else None


@pytest.mark.parametrize(
    ("line", "harmful"),
    [
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("yaml.load(text, Loader=yaml.Loader)", True),
        ("yaml.safe_load(text)", False),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path)", False),
        ("eval(text)", True),
        ("model.eval()", False),
    ],
)
def test_the_check_for_unsafe_calls_knows_them(line: str, harmful: bool) -> None:
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    assert (unsafe(call) is not None) == harmful


def test_files_stay_small() -> None:
    lengths = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in every_python_file()}
    too_long = {name: lines for name, lines in lengths.items() if lines >= MOST_LINES}
    assert not too_long, f"{too_long}: {MOST_LINES} lines are too many for one file"


def test_functions_stay_small() -> None:
    wrong = []
    for path in source_files():
        for function in functions(path):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > MOST_FUNCTION_LINES:
                wrong.append(f"{shown(path)}: {function.name} has {lines} lines")
    assert not wrong, wrong


def test_functions_take_few_arguments() -> None:
    wrong = []
    for path in source_files():
        for function in functions(path):
            names = [] if is_command(function) else arguments(function)
            if len(names) > MOST_ARGUMENTS:
                wrong.append(f"{shown(path)}: {function.name} takes {', '.join(names)}: group some in a config")
    assert not wrong, wrong


def is_command(function: Function) -> bool:
    """Return True if the function's arguments are the options of a command or the fields of a form."""
    names = [ast.unparse(decorator).partition("(")[0] for decorator in function.decorator_list]
    return any(name.endswith(".command") or name == "flow" for name in names)


def arguments(function: Function) -> list[str]:
    """Names of all arguments but the object itself."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    starred = [star for star in (given.vararg, given.kwarg) if star]
    return [argument.arg for argument in [*named, *starred] if argument.arg not in ("self", "cls")]


def test_modules_are_named_for_what_they_hold() -> None:
    names = [shown(path) for path in every_python_file() if {path.stem, path.parent.name} & EMPTY_NAMES]
    assert not names, names


def test_public_classes_and_functions_say_what_they_do() -> None:
    wrong = [
        f"{shown(path)}:{node.lineno} {node.name}"
        for path in source_files()
        for node in tree(path).body
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not wrong, "\n".join(wrong)


def test_public_methods_say_what_they_do() -> None:
    """Unless their base or a protocol says it, or there is so little in them that name and types do."""
    classes = {node.name: node for path in source_files() for node in tree(path).body if isinstance(node, ast.ClassDef)}
    said = {name for node in classes.values() if "Protocol" in base_names(node) for name in methods(node)}
    wrong = [
        f"{shown(path)}:{method.lineno} {node.name}.{name}"
        for path in source_files()
        for node in tree(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        for name, method in methods(node).items()
        if not (name.startswith("_") or name in said or inherits(node, name, classes))
        if len(method.body) > MOST_SILENT_STATEMENTS and not ast.get_docstring(method)
    ]
    assert not wrong, "\n".join(wrong)


def base_names(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(base) for base in node.bases]


def methods(node: ast.ClassDef) -> dict[str, Function]:
    return {method.name: method for method in node.body if isinstance(method, Function)}


def inherits(node: ast.ClassDef, method: str, classes: dict[str, ast.ClassDef]) -> bool:
    """Return True if a base of the class has the method; a base from elsewhere (an nn.Module) is taken to have it."""
    for name in base_names(node):
        base = classes.get(name)
        if base is None or method in methods(base) or inherits(base, method, classes):
            return True
    return False


def test_modules_say_what_they_are_about() -> None:
    filled = [path for path in every_python_file() if tree(path).body]
    silent = [shown(path) for path in filled if not ast.get_docstring(tree(path))]
    assert not silent, silent


def test_no_file_names_the_host_of_a_registry() -> None:
    """Where packages and weights are fetched from is the user's to say: a host written down would overrule it."""
    named = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in text_files()
        for match in REGISTRIES.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not named, "\n".join(named)


def text_files() -> Iterator[Path]:
    """The project's files that are text: code, recipes, settings and pages."""
    suffixes = {".py", ".toml", ".txt", ".cfg", ".yaml", ".yml", ".md", ".html", ".js", ".css", ".sh", ""}
    folders = [*PACKAGES, "recipes", "benchmarks", "tests", "docs", ".ci", ".github"]
    files = [path for name in folders for path in (ROOT / name).rglob("*") if path.is_file()]
    top = [path for path in ROOT.iterdir() if path.is_file()]
    return (path for path in [*top, *files] if path.suffix in suffixes and "__pycache__" not in path.parts)
