"""A recipe is read, overridden and checked."""

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import (
    BaseModel,
    TypeAdapter,
    ValidationError,
)

from colbert_zero.errors import ColbertZeroError, near, show
from colbert_zero.recipe.data import CollectionSpec, Columns, SourceSpec
from colbert_zero.recipe.mistakes import SECTIONS, contradictions, explain, wrong_references
from colbert_zero.recipe.schema import (
    Ensemble,
    HeadLayer,
    LowRank,
    Model,
    PerTask,
    PhaseSpec,
    Recipe,
    Teacher,
    Temperature,
    Validation,
)

_BUNDLED = Path(__file__).parents[1] / "recipes"

DEVICE_HOURS = Path(__file__).with_name("device_hours.json")

RECIPES = _BUNDLED if _BUNDLED.is_dir() else Path(__file__).parents[3] / "recipes"


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        path_or_name: A YAML file, or the name of a shipped recipe.
        overrides: `a.b.c=value` strings; values are YAML.

    Raises:
        ColbertZeroError: Every mistake at once, each with its key's path, its value and the mend.

    Example:
        >>> from colbert_zero import load_recipe
        >>> recipe = load_recipe("quickstart", ["phases.unsupervised.steps=5"])
        >>> recipe.phases["unsupervised"].steps
        5
    """
    path = _find(path_or_name)
    data = _whole(path)
    extends = ", which extends another; null takes one of its keys away" if _read(path).get("extends") else ""
    for override in overrides:
        _override(data, override)
    return check_recipe(data, f"{path}{extends}")


def shipped_recipes() -> dict[str, Path]:
    """The shipped recipes' files by name, as `smoke` and `paper/full`."""
    return {path.relative_to(RECIPES).with_suffix("").as_posix(): path for path in sorted(RECIPES.rglob("*.yaml"))}


def device_hours() -> dict[str, list[int] | None]:
    """Hours of one H100 that shipped recipes take, least and most, as `make docs` reckoned them."""
    hours: dict[str, list[int] | None] = json.loads(DEVICE_HOURS.read_text(encoding="utf-8"))
    return hours


def read_values(text: str) -> list[Any]:
    """The values between a text's commas, each YAML: `1e-4,3e-4`, `[pairs],[pairs, hard]`.

    Raises:
        ColbertZeroError: They are not valid YAML, or there is none.
    """
    try:
        values = yaml.load(f"[{text}]", _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not values:
        raise ColbertZeroError(f"{text or 'nothing'} is no list of values; write V1,V2,… and put text in quotes")
    return values


def check_recipe(data: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe's data; raises ColbertZeroError with every mistake at once."""
    mistakes: list[str] = []
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        mistakes = [explain(e, _keys) for e in error.errors()]
    mistakes += [*contradictions(data), *wrong_references(_sound_entries(data), data)]
    if mistakes:
        mistakes = list(dict.fromkeys(mistakes))
        count = "one mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise ColbertZeroError("\n".join([f"{where}: {count}", *(f"  {mistake}" for mistake in mistakes)]))
    return recipe


# ---- Reading


def _find(path_or_name: str | Path) -> Path:
    path, shipped = Path(path_or_name), shipped_recipes()
    if path.is_dir():
        raise ColbertZeroError(f"{path} is a folder; name the YAML file in it")
    if not path.is_file() and str(path_or_name) not in shipped:
        raise ColbertZeroError(
            f"{path_or_name}: no such file, no shipped recipe of that name{near(path_or_name, shipped)}"
        )
    return path if path.is_file() else shipped[str(path_or_name)]


def _whole(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe file's data, put over those of the recipe that it extends."""
    data, chain = _read(path), (*below, path.resolve())
    extended = data.pop("extends", None)
    if extended is None:
        return data
    if not isinstance(extended, str):
        raise ColbertZeroError(f"{path}: extends: should be a file or the name of a recipe, found {show(extended)}")
    beside, shipped = path.parent / extended, shipped_recipes()
    found = beside if beside.is_file() else shipped.get(extended)
    if found is None:
        raise ColbertZeroError(
            f"{path}: extends: {extended}: no such file beside it, no shipped recipe of that name"
            f"{near(extended, shipped)}"
        )
    if found.resolve() in chain:
        raise ColbertZeroError(f"{path}: extends: {extended} extends this very recipe; leave one of them out")
    return _merged(_whole(found, chain), data)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings put together key by key, other values replaced; null takes a key away.

    An entry of another kind is another entry.
    """
    if "kind" in over and over["kind"] != under.get("kind", "train"):
        under = {}
    merged = dict(under)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        else:
            both = isinstance(value, dict) and isinstance(under.get(key), dict)
            merged[key] = _merged(under[key], value) if both else value
    return merged


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, a date is text, and a key that stands twice is refused."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in lines:
                problem = f"the key {key.value!r} stands twice, first in line {lines[key.value]}; keep one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read(path: Path) -> dict[str, Any]:
    """A recipe file's data.

    Raises:
        ColbertZeroError: The file cannot be read, or is no YAML mapping; names line and column.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ColbertZeroError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ColbertZeroError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        context = f" ({error.context} from line {error.context_mark.line + 1} on)" if error.context_mark else ""
        raise ColbertZeroError(f"{path}{place}: not valid YAML: {error.problem}{context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ColbertZeroError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ColbertZeroError(f"{path}: not a recipe: nested too deep") from None
    if not isinstance(data, dict):
        found = "an empty file" if data is None else show(data)
        raise ColbertZeroError(f"{path}: a recipe is a mapping of keys (name, model, sources, …), found {found}")
    return data


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *parents, last = path.split(".")
    if not equals or not all([*parents, last]):
        raise ColbertZeroError(f"--set {override}: write KEY.PATH=VALUE, as in phases.unsupervised.learning_rate=1e-3")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ColbertZeroError(f"--set {override}: the value is not valid YAML; put text in quotes") from None
    for depth, parent in enumerate(parents):
        inner = data.get(parent)
        if inner is None and depth == 1 and parents[0] in SECTIONS:
            raise ColbertZeroError(f"--set {override}: no {parents[0][:-1]} {parent!r}{near(parent, data)}")
        if not isinstance(inner, dict | None):
            raise ColbertZeroError(f"--set {override}: {'.'.join(parents[: depth + 1])} is {show(inner)}, without keys")
        # A copy: with YAML's anchors, other entries may share this very mapping.
        data[parent] = dict(inner or {})
        data = data[parent]
    data[last] = value


# ---- Checking


def _keys(path: list[Any], kind: str | None) -> Iterable[str]:
    """Keys that are allowed where an unknown one was found."""
    model: type[BaseModel] = Recipe
    match path:
        case ["model"]:
            model = Model
        case ["model", "head", _]:
            model = HeadLayer
        case ["phases", _]:
            models = tuple(get_args(member)[0] for member in get_args(get_args(PhaseSpec)[0]))
            model = next(m for m in models if kind in get_args(m.model_fields["kind"].annotation))
        case ["teachers", _]:
            model = Teacher
        case ["ensembles", _]:
            model = Ensemble
        case ["validation"]:
            model = Validation
        case ["sources" | "collections", _]:
            models = get_args(get_args(SourceSpec if path[0] == "sources" else CollectionSpec)[0])
            model = next(m for m in models if kind in get_args(m.model_fields["kind"].annotation))
        case ["sources", _, "columns"]:
            model = Columns
        case ["phases", _, "temperature"]:
            model = Temperature
        case ["phases", _, "low_rank"]:
            model = LowRank
        case [*_, "markers" | "prompts"]:
            model = PerTask
    return [field.alias or name for name, field in model.model_fields.items()]


def _sound_entries(data: dict[str, Any]) -> Recipe:
    """A recipe of only the keys and entries without a mistake of their own."""
    sound: dict[str, Any] = {}
    for key, field in Recipe.model_fields.items():
        adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, field.annotation))
        if key in SECTIONS:
            sound[key], given = {}, data.get(key)
            for name, entry in given.items() if isinstance(given, dict) else ():
                with suppress(ValidationError):
                    sound[key] |= adapter.validate_python({name: entry})
        elif key in data:
            with suppress(ValidationError):
                sound[key] = adapter.validate_python(data[key])
    return Recipe.model_construct(**sound)
