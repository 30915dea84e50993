"""The `serve` section of the job file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recurra.config.section import Section
from recurra.serving.scaling import Autoscaling, AutoscalingConfig


class VaultConfig(Section):
    """Where sessions live between requests: processes that outlive every replica."""

    shards: int = Field(default=2, ge=1, le=256)
    """Processes that share the sessions, spread over the nodes; each keeps copies of another's, so 2 is the least at which
    a state need not be in the store before it is acknowledged. Choose an even number, so that on two nodes no two
    neighbours share one. Fixed once sessions are stored."""
    flush_s: float = Field(default=5.0, gt=0)
    """Within so many seconds an acknowledged state is in the object store, too: what the loss of two shards at once, or
    of the whole cluster, can cost."""
    memory_bytes: int = Field(default=256 << 20, ge=1 << 16)
    """Of states in each shard's memory; the others are read from the store."""
    journal_steps: int = Field(default=64, ge=0)
    """Steps that may have to be replayed from the last whole state (K); 0 = every version is kept whole."""
    idle_s: float = Field(default=300.0, gt=0)
    """A shard that nobody has asked for so long writes everything to the store and ends."""


class SessionConfig(Section):
    """Recurrent sessions of one replica."""

    vault: VaultConfig | None = VaultConfig()
    """null = no vault: every version is in the object store before it is acknowledged."""
    on_update: Literal["pin", "replay", "reset"] = "pin"
    """What a session does when another bundle is deployed than the one it was begun with. pin: it goes on with its own, which
    replicas fetch from the registry. replay: at its next request the new one reads its last `replay_steps` inputs again
    from the start, and the answer says how many; a session that the new one cannot read is pinned. reset: its state goes back
    to the start of the new one at its next request, whose answer says `reset: true`. The step number goes on."""
    replay_steps: int = Field(default=4096, ge=1, le=1 << 20)
    """Last inputs that each session keeps with its state, with `on_update: replay` alone: one, two or four bytes for each
    token by the size of the vocabulary, four for each feature of a step. Of older ones the replayed state knows nothing."""
    older_bundles: int = Field(default=2, ge=1, le=64)
    """Bundles beside the deployed ones that a replica holds ready for pinned sessions, each with slots of its own; the one
    that has been idle for longest makes room."""
    bytes_per_key: int | None = Field(default=None, ge=1 << 10)
    """Bytes of live sessions that one bearer key may have, counted by the vault; null = no limit."""

    ttl_s: float = Field(default=3600.0, gt=0)
    """Seconds without a request after which a session expires; a client may ask for less."""
    trace_steps: int = Field(default=32, ge=0, le=4096)
    """Last steps whose weightings `GET …/memory` shows, for models with a memory; 0 = none, and smaller snapshots."""
    memory_bytes: int = Field(default=256 << 20, ge=1 << 16)
    """Bytes of states that a replica keeps in memory for each bundle; the least recently used ones are then read from the store again."""
    url: str | None = None
    """Where states are written through to; null = `sessions` beside the registry."""
    trust_s: float = Field(default=10.0, gt=0)
    """Seconds that a replica believes its own copy of a session before it looks into the store for a newer one."""


class GuardConfig(Section):
    """When a replica takes a candidate back: over a limit, and worse than the stable bundle in the same window."""

    error_rate: float = Field(default=0.02, ge=0, lt=1)
    """Largest share of requests that may fail on the server's side (500, 504)."""
    p95_ms: float | None = Field(default=None, gt=0)
    """Longest time that 95 of 100 requests may take, streams left out; null = any."""
    window_s: float = Field(default=60.0, gt=0)
    """What is older is forgotten."""
    min_requests: int = Field(default=50, ge=1)
    """Requests to the candidate, at one replica and within the window, before there is a verdict."""


class CanaryConfig(Section):
    """A candidate that is tried out on a share of what comes."""

    model: str = Field(pattern=r"^[^@]+@[^@]+$")
    """The candidate by its alias, such as `sms@candidate`; a roll-back is written into the history of that alias."""
    share: float = Field(default=0.1, ge=0, le=1)
    """Of new sessions, and of requests outside of sessions."""
    guard: GuardConfig | None = GuardConfig()
    """null = nobody watches it."""


class ServeConfig(Section):
    """How a model is served."""

    model: str | None = None
    """Reference such as `sms@production`; null = the model and alias of the `publish` section."""
    replicas: int | tuple[int, int] = 1
    """A number, or [min, max] = autoscaling; a minimum of 0 lets an idle service go."""
    route_prefix: str = Field(default="/", pattern=r"^/([\w-]+(/[\w-]+)*)?$")
    """Path under which the service answers."""
    slots: int = Field(default=256, ge=1, le=65536)
    """Sequences that one replica steps together (S)."""
    max_queue: int = Field(default=1024, ge=1)
    """Sequences that may wait in one replica; one more is answered with 429 and Retry-After."""
    max_wait_s: float = Field(default=0.25, gt=0)
    """Requests at one replica may be twice `slots`, or as many as it answers within this time; one more is answered with 429
    and Retry-After. A burst that is over sooner may exceed that up to `max_queue`."""
    max_request_bytes: int = Field(default=1 << 20, ge=1 << 10)
    """Largest request body; a longer one is answered with 413."""
    max_steps_per_request: int = Field(default=4096, ge=1)
    """Time steps of one input sequence; a longer one is answered with 413."""
    max_instances: int = Field(default=256, ge=1)
    """Sequences in one predict request."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Tokens that one completion may generate."""
    encode_tokens: int = Field(default=8192, ge=16)
    """Time steps, padding included, in one forward pass over whole sequences."""
    chunk_steps: int = Field(default=256, ge=1)
    """A longer input is read in chunks of so many steps, so that it cannot hold up the others."""
    deadline_s: float = Field(default=30.0, gt=0)
    """A request that is not answered by then gets 504, and its slot is free again."""
    deterministic: bool = False
    """Compute in batches of one fixed shape, so that no bit of an answer depends on its neighbours in the batch."""
    step_precision: Literal["float32", "int8", "bf16"] = "float32"
    """int8: step rnn, gru and lstm layers on a CPU with 8-bit matrices: about three times faster for one sequence, more with
    AMX, and off by about 1 % of the outputs' range. bf16: these and the output layer in bfloat16, on CPUs with AMX or AVX512-BF16 (others step in float32 and
    say so): two to four times faster, and off by half of that. Whole inputs are read in the model's own precision all the same."""
    cpus_per_replica: float = Field(default=1.0, ge=0)
    gpus_per_replica: float = Field(default=0.0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    """Threads that torch computes with; null = the whole CPUs of the replica, at least 1."""
    max_ongoing: int | None = Field(default=None, ge=1)
    """Requests open at one replica; null = slots + max_queue + 64, so that the engine's own queue decides."""
    shutdown_s: float = Field(default=20.0, gt=0)
    """Seconds that a leaving replica may take to finish its requests."""
    surge_percent: int = Field(default=25, ge=0, le=100)
    """Replicas, in percent and rounded up, that an update may start before it stops old ones. 0 = for a cluster without
    room for one more: an old one goes first, and a single replica leaves a gap."""
    canary: CanaryConfig | None = None
    autoscaling: Autoscaling = AutoscalingConfig()
    """responsive: more replicas after a second of too much load, fewer after a minute of too little. steady: after 5 seconds
    and 5 minutes. Or settings of your own; those left out are those of responsive."""
    sessions: SessionConfig = SessionConfig()

    @model_validator(mode="after")
    def _check(self) -> ServeConfig:
        if isinstance(self.replicas, int):
            if self.replicas < 1:
                raise ValueError(
                    f"serve.replicas is {self.replicas}. Set it to at least 1, or to [0, 4] to scale to zero."
                )
        elif not 0 <= self.replicas[0] <= self.replicas[1] or self.replicas[1] < 1:
            low, high = self.replicas
            raise ValueError(
                f"serve.replicas is [{low}, {high}]. Write [min, max] with 0 <= min <= max and max at least 1."
            )
        return self

    @property
    def replica_range(self) -> tuple[int, int]:
        """Fewest and most replicas."""
        return (self.replicas, self.replicas) if isinstance(self.replicas, int) else self.replicas

    @property
    def torch_threads(self) -> int:
        """Threads that torch computes with."""
        return self.threads or max(1, int(self.cpus_per_replica))

    @property
    def open_requests(self) -> int:
        """Requests that Ray may hand to one replica at a time."""
        return self.max_ongoing or self.slots + self.max_queue + 64
