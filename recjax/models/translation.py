"""Relations as translations: TransE, TransH, TransR, TransD.

TransE (Bordes et al. 2013), TransH (Wang et al. 2014), TransR (Lin et al. 2015) and TransD (Ji et
al. 2015) score a triple by -||h' + r - t'||; they differ in the ' alone, where entities are put for
a relation. Letters: B queries, K candidates, E entities, R relations, D width of entities, W width
of relations.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from recjax.models import graph_layers

CONSTRAINTS = ("ball", "sphere", "none")
TRANSE_VARIANTS = {
  # KB2E: norms of entities and relations at most 1.
  "kb2e": dict(width=100, norm=1, constraint="ball"),
  # The paper: norms of entities are 1, relations are free after their start.
  "paper": dict(width=50, norm=1, constraint="sphere"),
  # No constraint: vectors may grow as far as a margin of several units asks (Sun et al. 2019).
  "free": dict(width=200, norm=1, constraint="none"),
}
TRANSH_VARIANTS = {"kb2e": dict(width=100, norm=1, constraint="ball")}
TRANSR_VARIANTS = {"kb2e": dict(width=100, relation_width=100, norm=1, constraint="ball")}
TRANSD_VARIANTS = {"paper": dict(width=100, relation_width=100, norm=2, constraint="ball")}
BLOCK = 1024  # candidates whose vectors are laid out for every query at once


class TransE(graph_layers.LinkModel):
  """-||h + r - t||. Parameters: entity/ and relation/."""
  width: int = 100  # D
  norm: int = 1  # of the distance: 1 or 2
  constraint: str = "ball"  # norms of entities and relations: see CONSTRAINTS
  objectives = ("margin_ranking", "logistic")
  choices = {"dtype": ("float32",), "norm": (1, 2), "constraint": CONSTRAINTS}

  @nn.compact
  def __call__(self, given, relations, asks_head, mask, tables, *, candidates=None,
               penalize=False, train=False):
    """Returns (scores [B, K], {}); see `graph_layers.LinkModel`."""
    del mask, tables, train
    entity, relation = self.entity_arrays(), self.relation_arrays()
    taken = {name: jnp.take(x, relations, axis=0) for name, x in relation.items()}
    def place(ids):
      return self.project({name: jnp.take(x, ids, axis=0) for name, x in entity.items()}, taken)
    # h + r is near t, and so is t - r to h.
    sign = jnp.where(asks_head, -1.0, 1.0)[:, None]
    query = place(given[:, None])[:, 0] + sign * taken["vector"]
    score = lambda ids: -distance(query[:, None], place(ids), self.norm)
    if candidates is None:
      scores = _in_blocks(score, self.num_entities)
    else:
      scores = score(candidates)
    return ((scores, self.penalty(taken)) if penalize else scores), {}

  def entity_arrays(self):
    """Returns {name: [E, D]}; "vector" is what the constraint is about."""
    table = graph_layers.Table(self.num_entities, self.width, self.start, name="entity")
    return {"vector": table()}

  def relation_arrays(self):
    """Returns {name: [R, ...]}; "vector" is the translation."""
    return {"vector": graph_layers.Table(self.num_relations, self.relation_dim,
                                         _unit_start(self.start), name="relation")()}

  @property
  def relation_dim(self):
    """Returns W."""
    return self.width

  @property
  def start(self):
    """Returns the initializer of vectors, within the constraint."""
    within = {"ball": graph_layers.within_ball, "sphere": graph_layers.unit, "none": lambda x: x}
    return _then(graph_layers.uniform_start, within[self.constraint])

  @staticmethod
  def project(entity, relation):
    """Returns [B, K, W]: entities where a relation sees them.

    Args:
      entity: {name: [B, K, D] or [1, K, D]} of `entity_arrays`.
      relation: {name: [B, ...]} of `relation_arrays`.
    """
    del relation
    return entity["vector"]

  @staticmethod
  def penalty(relation):
    """Returns [B]: what the objective's `penalty` weighs; nothing."""
    return jnp.zeros(len(relation["vector"]))

  def leaf_options(self):
    """Returns the constraints on norms, put back after every update."""
    if self.constraint == "none":
      return ()
    relations = (("relation/embedding", {"project": "ball"}),) if self.constraint == "ball" else ()
    return (("entity/embedding", {"project": self.constraint}), *relations)


class TransH(TransE):
  """Entities on the hyperplane of a relation, e' = e - (w . e) w.

  Parameters: entity/, relation/ and normal/. The penalty is that of Wang et al. 2014, Eq. 4: the
  translation should lie in the hyperplane.
  """

  def relation_arrays(self):
    """Returns also "normal" [R, D], of norm 1."""
    normal = graph_layers.Table(self.num_relations, self.width, _unit_start(self.start),
                                name="normal")
    return {**super().relation_arrays(), "normal": normal()}

  @property
  def start(self):
    """Returns N(0, 1 / D) within the ball."""
    normal = nn.initializers.normal(self.width**-0.5)
    return normal if self.constraint == "none" else _then(normal, graph_layers.within_ball)

  @staticmethod
  def project(entity, relation):
    e, w = entity["vector"], relation["normal"][:, None]
    return e - jnp.sum(w * e, -1, keepdims=True) * w

  @staticmethod
  def penalty(relation):
    """Returns [B]: max(0, (w . r)^2 / ||r||^2 - eps^2), eps = 1e-3."""
    r, w = relation["vector"], relation["normal"]
    out = jnp.square(jnp.sum(w * r, -1)) / jnp.maximum(jnp.sum(jnp.square(r), -1), 1e-12)
    return jax.nn.relu(out - 1e-6)

  def row_tables(self):
    return {**super().row_tables(), "normal/embedding": ("relation", 0)}

  def leaf_options(self):
    return (*super().leaf_options(), ("normal/embedding", {"project": "sphere"}))


class TransR(TransE):
  """Entities in the space of a relation, e' = M_r e, norms at most 1.

  Parameters: entity/, relation/ and projection/kernel [R, W, D], which starts as the identity: with
  `transfer.mode=embedding` from a TransE it begins where that one ended, as in the authors' code.
  """
  relation_width: int = 100  # W

  @property
  def relation_dim(self):
    return self.relation_width

  def relation_arrays(self):
    """Returns also "projection" [R, W, D]."""
    shape = (self.num_relations, self.relation_width, self.width)
    return {**super().relation_arrays(), "projection": _Kernel(shape, name="projection")()}

  @staticmethod
  def project(entity, relation):
    e, kernel = entity["vector"], relation["projection"]
    if e.shape[0] == 1:  # Shared candidates: one product for all queries.
      return graph_layers.within_ball(jnp.einsum("bwd,kd->bkw", kernel, e[0]))
    return graph_layers.within_ball(jnp.einsum("bwd,bkd->bkw", kernel, e))

  def row_tables(self):
    return {**super().row_tables(), "projection/kernel": ("relation", 0)}


class TransD(TransE):
  """Entities moved along a relation's vector, e' = I e + (e_p . e) r_p, norms at most 1.

  Parameters: entity/, relation/, entity_projection/ and relation_projection/.
  """
  relation_width: int = 100  # W

  @property
  def relation_dim(self):
    return self.relation_width

  @property
  def start(self):
    """Returns Xavier's uniform start, within the ball."""
    xavier = nn.initializers.xavier_uniform()
    return xavier if self.constraint == "none" else _then(xavier, graph_layers.within_ball)

  def entity_arrays(self):
    """Returns also "projection" [E, D]."""
    table = graph_layers.Table(self.num_entities, self.width, self.start, name="entity_projection")
    return {**super().entity_arrays(), "projection": table()}

  def relation_arrays(self):
    """Returns also "projection" [R, W]."""
    table = graph_layers.Table(self.num_relations, self.relation_width, self.start,
                               name="relation_projection")
    return {**super().relation_arrays(), "projection": table()}

  @staticmethod
  def project(entity, relation):
    e, along = entity["vector"], relation["projection"][:, None]  # [B or 1, K, D], [B, 1, W]
    amount = jnp.sum(entity["projection"] * e, -1, keepdims=True)
    width = along.shape[-1]
    same = jnp.pad(e, ((0, 0), (0, 0), (0, max(width - e.shape[-1], 0))))[..., :width]
    return graph_layers.within_ball(same + amount * along)

  def row_tables(self):
    return {**super().row_tables(), "entity_projection/embedding": ("entity", 0),
            "relation_projection/embedding": ("relation", 0)}


def distance(a, b, norm):
  """Returns ||a - b|| over the last axis, of norm 1 or 2."""
  if norm == 1:
    return jnp.sum(jnp.abs(a - b), -1)
  return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(a - b), -1), 1e-12))  # finite slope at 0


class _Kernel(nn.Module):
  """Matrices that start as the identity, [R, W, D]."""
  shape: tuple

  @nn.compact
  def __call__(self):
    start = lambda key, shape: jnp.broadcast_to(jnp.eye(*shape[1:]), shape)
    return self.param("kernel", start, self.shape)


def _in_blocks(score, count):
  """Returns [B, count] of score(ids [1, k]) -> [B, k], a block of candidates after the other."""
  blocks = -(-count // BLOCK)
  if blocks == 1:
    return score(jnp.arange(count)[None])
  ids = jnp.minimum(jnp.arange(blocks * BLOCK), count - 1).reshape(blocks, 1, BLOCK)
  scores = jax.lax.map(score, ids)  # [blocks, B, BLOCK]
  return scores.swapaxes(0, 1).reshape(scores.shape[1], -1)[:, :count]


def _then(start, change):
  return lambda key, shape, dtype=jnp.float32: change(start(key, shape, dtype))


def _unit_start(start):
  return _then(start, graph_layers.unit)
