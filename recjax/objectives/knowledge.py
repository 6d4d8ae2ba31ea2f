"""Knowledge-graph embedding beside a sequence task, with shared item rows.

The survey (Zeng et al. 2021, Section 5) asks for pre-training that knows more than sequences: here
L = L_sequences + lambda L_KGE, where an entity that is an item has the item's row for its vector.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from recjax import errors
from recjax.objectives import logistic
from recjax.objectives import margin_ranking
from recjax.objectives import objective

CRITERIA = ("margin_ranking", "logistic")


@dataclasses.dataclass(frozen=True)
class Knowledge(objective.Objective):
  """Tells true triples from corrupted ones, as graphs' own objectives do.

  Every row of the batch brings `triples` of the graph's train split, drawn anew. `scorer` is transe
  (with the distance's `norm`) or complex; the vectors of entities may be seen with a norm of 1
  (`normalize`), which the item rows themselves need not have. `margin_ranking` draws one corruption
  a triple, `logistic` as many as `num_negatives`.
  """
  graph: str = ""  # the name of its data set
  scorer: str = "transe"
  norm: int = 1
  normalize: bool = True
  criterion: str = "margin_ranking"
  margin: float = 1.0
  num_negatives: int = 1
  corruption: str = "bern"
  triples: int = 4
  predicts = False
  window = None

  def __post_init__(self):
    errors.choose(dict.fromkeys(CRITERIA), self.criterion, "objective.knowledge.criterion")
    if self.triples < 1:
      raise errors.UserError("objective.knowledge.triples must be at least 1, not "
                             f"{self.triples}")
    self.links(1)  # has checks of its own

  @property
  def auxiliary(self):
    """Returns the module that scores triples, and how."""
    return (("knowledge", {"graph": self.graph, "scorer": self.scorer, "norm": self.norm,
                           "normalize": self.normalize}),)

  def links(self, num_entities):
    """Returns the objective of a graph of so many entities."""
    common = dict(num_entities=num_entities, margin=self.margin, corruption=self.corruption)
    if self.criterion == "margin_ranking":
      return margin_ranking.MarginRanking(**common)
    return logistic.Logistic(**common, num_negatives=self.num_negatives)

  def prepare(self, rng, batch, resident):
    """Returns the inputs of `links`, [B, triples, ...]; rows that fill up a batch bring none."""
    graph, rows = resident["knowledge"], len(batch["users"])
    which, how = jax.random.split(rng)
    drawn = {"rows": jax.random.randint(which, (rows * self.triples,), 0, len(graph["triples"])),
             "mask": jnp.repeat(batch["users"] > 0, self.triples)}
    inputs = self.links(len(graph["pool"])).prepare(how, drawn, graph)
    return {name: x.reshape(rows, self.triples, *x.shape[1:]) for name, x in inputs.items()}

  def labels(self, inputs):
    """Returns int32 [B]: triples of each row."""
    return jnp.sum(inputs["mask"], axis=1)

  @staticmethod
  def trim(inputs, columns):
    """Returns `inputs`, which have no columns."""
    del columns
    return inputs

  def loss(self, apply_fn, params, inputs, *, shards, capacity, rng):
    """Returns (sum, triples, {"dropped": 0})."""
    flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in inputs.items()}
    score = functools.partial(apply_fn, auxiliary="knowledge")
    return self.links(1).loss(score, params, flat, shards=shards, capacity=capacity, rng=rng)
