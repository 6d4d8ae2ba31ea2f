"""What transfers, and at what price: backbones x pre-training objectives x modes x tasks.

Every backbone is pre-trained on the source domain of MovieLens-1M by several objectives, and every
task starts from each of them in several ways:

  backbones   bert4rec, sasrec (the survey's transformers), nextitnet, grec (causal and
              bidirectional convolutions), caser (which reads five items: for `next` alone)
  objectives  masked, next or causal, as a backbone reads, and contrast: its own and contrastive
              learning at once; Caser has window (next items) and masked_window
  modes       none       nothing is pre-trained
              embedding  item vectors and positions cross, the encoder starts fresh
              model      everything but the head crosses, and all of it trains on
              head       the same, frozen: the head alone trains
              patch      the same, and small parts inside train as well
  patches     adapter, lora, bias, prefix; in convolutions serial_two, serial_one, parallel, bias
  tasks       items (source history -> first items in the target, for users cold there), next
              (target history -> next items), gender, age, occupation

The report has, for each task, quality beside trained parameters as a table and as a plot, what each
row gains over `none` of its backbone, and in which slices of users and items it hurts.

    python -m recjax.prepare --config=configs/data/ml1m.py --raw_dir=RAW --data_dir=DIR
    python -m recjax.study --config=configs/studies/matrix.py:cpu --workdir=W --config.data_dir=DIR

Full size: all of it, five seeds with a pre-training each, for a GPU. `:cpu`: two layers of 64 on
the last 20 items of a user, one pre-training (8 epochs, Caser 2) for each backbone and objective,
three seeds of 4 epochs, the tasks `items` and `gender` (and `next` for Caser), one kind of patch a
backbone: 178 runs, 62 minutes of one core (README.md has its numbers; the full size has not been
run). So few epochs say which ways differ much, not how good any of them can get.

Each list is an argument, with + between names: `matrix.py:cpu,tasks=age+occupation,patches=lora`.
Tasks that differ in the label alone (gender, age, occupation) are trained in one program.
"""

from configs.studies import common
from recjax import errors
from recjax import spec

TITLES = {"bert4rec": "BERT4Rec", "sasrec": "SASRec", "nextitnet": "NextItNet", "grec": "GRec",
          "caser": "Caser"}
OBJECTIVES = {  # of pre-training
  "bert4rec": {"masked": "MIP", "next": "NIP", "contrast": "MIP and contrast"},
  "sasrec": {"causal": "NIP", "contrast": "NIP and contrast"},
  "nextitnet": {"causal": "NIP", "contrast": "NIP and contrast"},
  "grec": {"masked": "MIP", "next": "NIP", "contrast": "MIP and contrast"},
  "caser": {"window": "NIP", "masked_window": "MIP"},
}
MODES = {"none": "from scratch", "embedding": "embeddings", "model": "everything tuned",
         "head": "head alone", "patch": "patch"}
PATCHES = {"adapter": "adapters", "lora": "LoRA", "bias": "biases", "prefix": "prefixes",
           "serial_two": "patches, two serial", "serial_one": "patches, one serial",
           "parallel": "patches, parallel"}
FITTING = {  # patches of a backbone
  **dict.fromkeys(("bert4rec", "sasrec"), ("adapter", "lora", "bias", "prefix")),
  **dict.fromkeys(("nextitnet", "grec"), ("serial_two", "serial_one", "parallel", "bias")),
  "caser": (),
}
TASKS = {"items": "first items", "next": "next items", "gender": "gender", "age": "age",
         "occupation": "occupation"}
ITEM_TASKS = ("items", "next")
CPU = {"backbones": "bert4rec+sasrec+nextitnet+caser",
       "objectives": "masked+causal+contrast+window", "patches": "adapter+serial_two",
       "tasks": "items+gender"}
SMALL = (("model.num_layers", 2), ("model.item_width", 64), ("model.max_len", 20))
EMBEDDINGS = (("transfer.rules", ((r"embed/.*", r"\g<0>"),)),)


def get_config(arg=None):
  """Returns the study's config; see the module's docstring for `arg`."""
  arg = spec.parse_arg(arg, cpu=False, backbones="", objectives="", modes="", patches="", tasks="")
  objectives = dict.fromkeys(name for names in OBJECTIVES.values() for name in names)
  every = {"backbones": TITLES, "objectives": objectives, "modes": MODES, "patches": PATCHES,
           "tasks": TASKS}
  chosen = {name: _chosen(name, arg[name] or arg.cpu and CPU.get(name), known)
            for name, known in every.items()}
  config = common.study(
    f"Transfer matrix on MovieLens-1M (size {'cpu' if arg.cpu else 'full'})",
    prepare=common.prepare("ml1m"),
    seeds=(0, 1, 2) if arg.cpu else (0, 1, 2, 3, 4),
    overrides=(("eval.contexts", ("train",)),))
  if arg.cpu:
    config.bootstrap_draws = 2_000
  config.cohort_size = 15  # What differs in seed, source or task alone is one program.
  config.runs, config.baselines, config.rows, config.comparisons = {}, {}, (), ()
  grid = _Grid(config, small=arg.cpu)
  for task in TASKS:
    for backbone in chosen["backbones"]:
      if task in _tasks(backbone, chosen["tasks"], arg.cpu and not arg.tasks):
        grid.add(backbone, task, chosen)
  config.tasks = tuple((TASKS[task], _metric(task), tuple(runs))
                       for task, runs in grid.runs.items())
  config.headline = tuple(dict.fromkeys(metric for task in grid.runs for metric in (
    ("ndcg@10", "recall@10") if task in ITEM_TASKS else ("accuracy", "macro_f1"))))
  config.claims = tuple(claim for task in grid.runs for claim in grid.claims(task))
  config.notes = """\
- "from scratch" is the baseline of every row of its backbone and task. "embeddings" are the item
  table and positions (and Caser's users), not the survey's user table: tasks here read no user.
- NIP: next item prediction, MIP: masked item prediction; they name what was pre-trained.
- That patches are as good as tuning all cannot be shown by a test that finds no difference: read
  the intervals of the comparisons. Epochs are few and the same for all; ways that start from less
  are cut short the most."""
  if arg.cpu:
    config.notes += common.SHARED
  return config


class _Grid:
  """Fills a study's config with the rows of one backbone and task after the other."""

  def __init__(self, config, *, small):
    self._config, self._small = config, small
    self.runs = {}  # {task: [run, ...]}
    self._families = {}  # {task: [{way: run}, ...]}, with the baseline as "none"

  def add(self, backbone, task, chosen):
    """Adds the rows of a backbone and a task: from scratch, then each objective in every mode."""
    base = f"{backbone}_{task}_none"
    self._row(base, f"{TASKS[task]}: {TITLES[backbone]}: {MODES['none']}", task, {
      "config": self._path(backbone, task=task, patch="none"),
      "overrides": self._overrides(backbone, task)})
    for objective in (name for name in OBJECTIVES[backbone] if name in chosen["objectives"]):
      source, family = self._pretrained(backbone, objective), {"none": base}
      for way, title, patch, mode in _ways(backbone, chosen):
        run, label = f"{backbone}_{objective}_{task}_{way}", (
          f"{TITLES[backbone]}, {OBJECTIVES[backbone][objective]}: {title}")
        frozen = (("transfer.task_tree", True),) if mode == "patch" else ()
        self._row(run, f"{TASKS[task]}: {label}", task, {
          "config": self._path(backbone, task=task, patch=patch), "source": source, "mode": mode,
          "source_seeds": self._sources() * (len(self._config.seeds) // len(self._sources())),
          "overrides": (*self._overrides(backbone, task), *frozen,
                        *(EMBEDDINGS if mode == "rules" else ()))})
        self._config.baselines[run] = base
        family[way] = run
        if way in PATCHES and "model" in family:
          self._config.comparisons += ((
            f"{TASKS[task]}: {label} – {MODES['model']}", run, family["model"]),)
      self._families.setdefault(task, []).append(family)

  def claims(self, task):
    """Returns the claims about a task, each over all backbones and objectives that have both."""
    where, found = _metric(task), []
    for text, ways, other in (
        ("pre-training helps", ("model",), "none"),
        ("pre-trained embeddings help", ("embedding",), "none"),
        ("patches are better than no pre-training", tuple(PATCHES), "none"),
        ("patches are better than the head alone", tuple(PATCHES), "head")):
      pairs = tuple((family[way], family[other]) for family in self._families.get(task, ())
                    for way in ways if way in family and other in family)
      found += [(f"{TASKS[task].capitalize()}: {text}", pairs, where)] * bool(pairs)
    return found

  def _row(self, run, label, task, values):
    self._config.runs[run] = values
    self._config.rows += ((label, run),)
    self.runs.setdefault(task, []).append(run)

  def _pretrained(self, backbone, objective):
    """Returns the name of the run that pre-trains, which is added once."""
    name = f"{backbone}_{objective}"
    if name not in self._config.runs:
      self._config.runs[name] = {
        "config": self._path(backbone, objective=objective), "seeds": self._sources(),
        "overrides": self._overrides(backbone, "pretrain")}
    return name

  def _sources(self):
    return self._config.seeds[:1] if self._small else self._config.seeds

  def _path(self, backbone, *, task="pretrain", patch="", objective=""):
    size = "cpu" if self._small else "full"
    if backbone == "caser":
      data = "src" if task == "pretrain" else "tgt"
      return (f"configs/caser_ml1m.py:data={data},size={size},"
              f"task={'mip' if objective == 'masked_window' else 'nip'}")
    name = {"nextitnet": "causal", "grec": "noncausal"}.get(backbone, backbone)
    tail = f"task={task},patch={patch}" if task != "pretrain" else f"objective={objective}"
    return f"configs/peterrec_ml1m.py:backbone={name},size={size},{tail}"

  def _overrides(self, backbone, task):
    ranked = (("eval.protocols", ("full",)),) if task in ("pretrain", *ITEM_TASKS) else ()
    if not self._small:
      return ranked
    epochs, every = (8.0, 4.0) if task == "pretrain" else (4.0, 2.0)
    sizes = SMALL
    if backbone == "caser":
      epochs, sizes = (2.0 if task == "pretrain" else epochs), ()
    users = (("eval.max_users", 2_000),) if task in ITEM_TASKS else ()
    return *ranked, *sizes, ("total_epochs", epochs), ("eval.every_epochs", every), *users


def _chosen(name, text, known):
  """Returns the names in "a+b", or all that there are, in the order of `known`."""
  names = [part for part in (text or "").split("+") if part]
  for part in names:
    errors.choose(known, part, name)
  return [part for part in known if not names or part in names]


def _tasks(backbone, tasks, small):
  """Returns the tasks of a backbone: Caser has `next`, which the small study has for it alone."""
  if backbone == "caser":
    return ["next"] * (small or "next" in tasks)
  return tasks


def _ways(backbone, chosen):
  """Returns [(name, title, kind of patch, transfer mode)] of what starts from a pre-training."""
  found = []
  for mode in (name for name in chosen["modes"] if name != "none"):
    if mode == "patch":
      found += [(kind, PATCHES[kind], kind, "patch") for kind in FITTING[backbone]
                if kind in chosen["patches"]]
    elif mode != "head" or FITTING[backbone]:
      found.append((mode, MODES[mode], "none", {"embedding": "rules", "head": "patch"}.get(
        mode, mode)))
  return found


def _metric(task):
  return "full/ndcg@10" if task in ITEM_TASKS else "profile/accuracy"
