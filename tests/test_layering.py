"""Who may import whom, checked on the syntax trees of all of recjax/.

A module may import of recjax only what its row names (`data.*` is everything in data/, `*` is
everything but `train`), and every module has a row: the most exact one that fits.

    errors collective memory loops      nothing
    hashing                             nothing
    softmax                             loops
    catalog                             collective softmax
    trees spec clock                    errors
    digests                             trees hashing
    record                              errors clock
    cli                                 errors
    state                               errors trees
    step                                errors trees state optim partition catalog loops
    sparse                              errors trees step
    transfer task_trees                 errors trees
    partition                           errors trees collective memory
    checkpoint                          errors trees digests task_trees
    optim                               errors trees spec
    statistics slices                   errors
    tables comparisons                  errors statistics slices evaluators.metrics
    claims                              errors statistics comparisons evaluators.metrics
    trade_offs                          tables evaluators.metrics
    sections                            errors slices statistics tables claims trade_offs
                                        evaluators.metrics
    plots                               errors slices tables trade_offs evaluators.metrics
    report                              errors record evaluators.metrics and all of the above
    study_plan                          errors spec report results data.sequences data.kinds
    results                             errors trees record slices data.* evaluators.*
    experiment                          errors trees state step partition checkpoint transfer
                                        task_trees auxiliary models.* objectives.* data.*
                                        evaluators.*
    auxiliary                           errors trees models.* data.*
    models/ (one paper a file)          errors catalog collective loops hashing
                                        models.layers models.auxiliary models.blocks
                                        models.column_layers models.columns models.features
                                        models.flash
                                        models.graph_layers models.item_knn models.patches
                                        models.pairwise models.rows models.sequence_embed
                                        models.stream models.text_encoders models.transformer
                                        models.untrained;
                                        models/__init__: models.*
    objectives/                         errors catalog hashing objectives.*
    data/                               errors spec hashing data.*
    evaluators/                         errors catalog collective data.* evaluators.*
    analysis                            errors trees record checkpoint data.sequences
    feed                                errors partition data.*
    setting                             errors trees spec state step sparse optim partition
                                        results experiment feed
    cohort_tasks                        catalog trees experiment setting
    cohort_plan trials study_cohorts    no jax: errors, record, report and the like
    train evaluate study cohort recommend prepare export  *; study and cohort also train

Whoever needs a library that one module owns goes through that module:

    orbax       checkpoint
    optax       optim
    meshes      partition
    jax in data/    data.batches
    flags       cli and the entries
    pickle      nobody; nor eval and exec
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent / "recjax"
MAX_LINES = 400

ENTRIES = {"train", "cohort", "evaluate", "study", "recommend", "prepare", "export"}
MAY_IMPORT = {
  "__init__": set(),
  **dict.fromkeys(("errors", "collective", "memory", "loops", "hashing"), set()),
  "softmax": {"loops"},
  "catalog": {"collective", "softmax"},
  **dict.fromkeys(("trees", "spec", "clock", "cli", "statistics", "slices"), {"errors"}),
  **dict.fromkeys(("tables", "comparisons"), {"errors", "statistics", "slices",
                                              "evaluators.metrics"}),
  "claims": {"errors", "statistics", "comparisons", "evaluators.metrics"},
  "trade_offs": {"tables", "evaluators.metrics"},
  "sections": {"errors", "slices", "statistics", "tables", "trade_offs", "claims",
               "evaluators.metrics"},
  "record": {"errors", "clock"},
  "plots": {"errors", "slices", "tables", "trade_offs", "evaluators.metrics"},
  "state": {"errors", "trees"},
  "step": {"errors", "trees", "state", "optim", "partition", "catalog", "loops"},
  "sparse": {"errors", "trees", "step"},
  **dict.fromkeys(("transfer", "task_trees"), {"errors", "trees"}),
  "digests": {"trees", "hashing"},
  "partition": {"errors", "trees", "collective", "memory"},
  "checkpoint": {"errors", "trees", "digests", "task_trees"},
  "optim": {"errors", "trees", "spec"},
  "report": {"errors", "record", "slices", "statistics", "comparisons", "claims", "tables",
             "trade_offs", "sections", "plots", "evaluators.metrics"},
  "study_plan": {"errors", "spec", "report", "results", "data.sequences", "data.kinds"},
  "results": {"errors", "trees", "record", "slices", "data.*", "evaluators.*"},
  "experiment": {"errors", "trees", "state", "step", "partition", "checkpoint", "transfer",
                 "task_trees", "auxiliary", "models.*", "objectives.*", "data.*", "evaluators.*"},
  "auxiliary": {"errors", "trees", "models.*", "data.*"},
  "models.__init__": {"errors", "models.*"},
  "models.*": {"errors", "catalog", "collective", "loops", "hashing", "models.layers",
               "models.auxiliary", "models.blocks", "models.column_layers", "models.columns",
               "models.features", "models.flash", "models.graph_layers", "models.item_knn",
               "models.patches", "models.pairwise", "models.rows", "models.sequence_embed",
               "models.stream", "models.text_encoders", "models.transformer", "models.untrained"},
  "objectives.*": {"errors", "catalog", "hashing", "objectives.*"},
  "data.*": {"errors", "spec", "hashing", "data.*"},
  "evaluators.*": {"errors", "catalog", "collective", "data.*", "evaluators.*"},
  "analysis": {"errors", "trees", "record", "checkpoint", "data.sequences"},
  **dict.fromkeys(ENTRIES, {"*"}),
  **dict.fromkeys(("study", "cohort"), {"*", "train"}),
  "feed": {"errors", "partition", "data.*"},
  "setting": {"errors", "trees", "spec", "state", "step", "sparse", "optim", "partition",
              "results", "experiment", "feed"},
  "cohort_plan": {"errors"},
  "cohort_tasks": {"catalog", "trees", "experiment", "setting"},
  "trials": {"record", "evaluators.metrics"},
  "study_cohorts": {"errors", "report", "tables", "cohort_plan"},
}
OWNERS = {
  "orbax": {"checkpoint"},
  "optax": {"optim"},
  "pickle": set(), "cPickle": set(), "dill": set(), "cloudpickle": set(), "joblib": set(),
}


def _modules():
  """Returns {dotted name below recjax: path}; a package is NAME.__init__."""
  return {".".join(path.relative_to(ROOT).with_suffix("").parts): path
          for path in sorted(ROOT.rglob("*.py"))}


def _imports(source, names):
  """Returns the set of full dotted names that `source` imports, wherever in the file.

  `from recjax.a import b` is recjax.a.b if `names` has that module, else recjax.a (and b in it).
  """
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      if node.level:
        found.add("." * node.level + (node.module or ""))
        continue
      for alias in node.names:
        full = f"{node.module}.{alias.name}"
        is_module = full.removeprefix("recjax.") in names or node.module == "recjax"
        found.add(full if is_module or not full.startswith("recjax.") else node.module)
  return found


def _matches(name, pattern):
  if pattern == "*":
    return name != "train"
  return name == pattern or pattern.endswith(".*") and name.startswith(pattern[:-1])


def _row(module):
  """Returns what `module` may import; KeyError for a module without a row."""
  if module in MAY_IMPORT:
    return MAY_IMPORT[module]
  package, dot, _ = module.rpartition(".")
  return MAY_IMPORT[f"{package}.*" if dot else module]


def violations(module, source, names):
  """Returns what is wrong with the module `module`, as a list of sentences."""
  wrong = []
  try:
    allowed = _row(module)
  except KeyError:
    return [f"{module} has no row in the table of tests/test_layering.py"]
  packages = {name.removesuffix(".__init__") for name in names if name.endswith(".__init__")}
  for full in sorted(_imports(source, names | packages)):
    top, _, rest = full.partition(".")
    if full.startswith("."):
      wrong.append(f"{module} imports relative to itself ({full}); write from recjax... import")
    elif top == "recjax":
      # A package stands for its __init__, which `data.*` covers as well.
      name = f"{rest}.__init__" if rest in packages else rest
      if rest and not any(_matches(name, pattern) for pattern in allowed):
        wrong.append(f"{module} may not import recjax.{rest}")
    elif top in OWNERS and module not in OWNERS[top]:
      wrong.append(f"{module} may not import {top} ({', '.join(OWNERS[top]) or 'nobody'} may)")
    elif (top in ("jax", "flax", "jaxlib") and module.startswith("data.")
          and module != "data.batches"):
      wrong.append(f"{module} may not import {top}: in data/ only data.batches does")
  wrong += [f"{module}:{line} {what}" for line, what in _forbidden_calls(module, ast.parse(source))]
  if (lines := source.count("\n")) > MAX_LINES:
    wrong.append(f"{module} has {lines} lines, more than {MAX_LINES}: it is two files")
  return wrong


def _forbidden_calls(module, tree):
  for node in ast.walk(tree):
    if not isinstance(node, ast.Call):
      continue
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = function.value.id if (isinstance(function, ast.Attribute)
                                  and isinstance(function.value, ast.Name)) else ""
    if isinstance(function, ast.Name) and name in ("eval", "exec", "__import__"):
      yield node.lineno, f"calls {name}"
    if name in ("make_mesh", "Mesh", "create_device_mesh") and owner != "partition" \
        and module != "partition":
      yield node.lineno, f"builds a mesh ({name}); only partition does"
    if (name.startswith("DEFINE_") or name == "define_config") and module not in ENTRIES | {"cli"}:
      yield node.lineno, f"defines a flag ({name}); only cli and the entries do"
    if any(k.arg == "allow_pickle" and getattr(k.value, "value", None) is not False
           for k in node.keywords):
      yield node.lineno, "passes allow_pickle=True"


@pytest.mark.parametrize("module", sorted(_modules()))
def test_layering(module):
  modules = _modules()
  assert violations(module, modules[module].read_text(), set(modules)) == []


NAMES = {"errors", "train", "spec", "optim", "partition", "checkpoint", "data.__init__",
         "data.batches", "data.sequences", "models.__init__", "models.layers",
         "models.sasrec", "models.bert4rec", "evaluators.__init__", "evaluators.metrics"}


@pytest.mark.parametrize("module, source", [
  ("novel", ""),
  ("errors", "from recjax import spec"),
  ("models.sasrec", "from recjax.models import bert4rec"),
  ("models.sasrec", "from recjax import models"),
  ("models.sasrec", "def f():\n  import recjax.data.sequences"),
  ("models.sasrec", "from .layers import Block"),
  ("optim", "from recjax.checkpoint import save"),
  ("analysis", "from recjax import data"),
  ("analysis", "from recjax.data import batches"),
  ("evaluate", "from recjax import train"),
  ("evaluate", "from recjax.train import train_and_evaluate"),
  ("train", "import orbax.checkpoint as ocp"),
  ("step", "from optax import losses"),
  ("data.sequences", "import jax.numpy as jnp"),
  ("train", "import jax\nmesh = jax.make_mesh((1,), ('data',))"),
  ("train", "from jax import sharding\nsharding.Mesh([], ())"),
  ("data.batches", "from absl import flags\nflags.DEFINE_string('a', None, 'b')"),
  ("spec", "eval('1')"),
  ("record", "import pickle"),
  ("checkpoint", "import numpy as np\nnp.load('a', allow_pickle=True)"),
  ("train", "\n" * 401),
])
def test_violation_is_found(module, source):
  assert len(violations(module, source, NAMES)) == 1


@pytest.mark.parametrize("module, source", [
  ("models.sasrec", "from recjax import errors\nfrom recjax.models import layers\nimport jax"),
  ("models.__init__", "from recjax.models import sasrec\nfrom recjax.models import bert4rec"),
  ("evaluators.metrics", "from recjax.data import sequences\nfrom recjax import data"),
  ("data.batches", "import jax"),
  ("study", "from recjax import train"),
  ("train", "import recjax\nfrom recjax import partition\nmesh = partition.make_mesh(1)"),
  ("partition", "import jax\njax.make_mesh((1,), ('data',))"),
  ("train", "from absl import flags\nflags.DEFINE_string('a', None, 'b')"),
])
def test_permitted_is_not_found(module, source):
  assert violations(module, source, NAMES) == []


def _defines_on_import(source):
  return [node for node in ast.parse(source).body
          if isinstance(node, ast.Expr)
          and any(call in ast.unparse(node) for call in ("flags.DEFINE_", "define_config("))]


def test_flags_are_defined_only_when_a_command_runs():
  # Two modules with a flag of one name could not be imported by the same process.
  assert _defines_on_import("from absl import flags\nflags.DEFINE_string('a', None, 'b')")
  files = [*ROOT.rglob("*.py"), *(ROOT.parent / "launch").rglob("*.py")]
  assert [file for file in files if _defines_on_import(file.read_text())] == []
